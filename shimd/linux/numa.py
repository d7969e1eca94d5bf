"""Memory policy of a process, see set_mempolicy(2)."""

from __future__ import annotations

from shimd.linux._libc import NR, syscall
from shimd.typed import Iterable

MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}

FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}

_LONG = 8


def set_mempolicy(mode: int, nodes: Iterable[int]) -> None:
    """``mode`` with its flags; kept over fork and execve. EINVAL for a node that this process may not use."""
    mask = 0
    for node in nodes:
        mask |= 1 << node
    size = -(-mask.bit_length() // (8 * _LONG)) * _LONG
    # The kernel takes one from the number of bits before it looks at them.
    syscall(NR["set_mempolicy"], mode, mask.to_bytes(size, "little") if mask else None, size * 8 + 1 if mask else 0)
