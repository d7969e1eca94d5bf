"""The device program of cgroup v2: an :class:`~shimd.cgroups.devices.Access` as BPF instructions. Pure.

The kernel runs a BPF_PROG_TYPE_CGROUP_DEVICE program at each open and mknod of a device with a ``struct
bpf_cgroup_dev_ctx``: the wanted access in the upper and the type in the lower half of the first word, then major
and minor. It returns 1 to allow and 0 to deny. An exception to "deny" grants only if it covers all that is wanted;
an exception to "allow" denies if it covers any of it, as on v1.
"""

from __future__ import annotations

import struct

from shimd.cgroups.devices import ALL, ANY, Access, Node

_INSTRUCTION = struct.Struct("=BBhi")
_TYPES = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*

# opcodes: class | size or operation | source (linux/bpf.h, linux/bpf_common.h)
_LOAD_WORD = 0x61  # BPF_LDX | BPF_W | BPF_MEM
_MOVE = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
_MOVE_VALUE = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
_AND_VALUE = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_JUMP_UNLESS_VALUE = 0x56  # BPF_JMP32 | BPF_JNE | BPF_K
_JUMP_IF_VALUE = 0x16  # BPF_JMP32 | BPF_JEQ | BPF_K
_JUMP_UNLESS_EQUAL = 0x5E  # BPF_JMP32 | BPF_JNE | BPF_X
_EXIT = 0x95  # BPF_JMP | BPF_EXIT

_RESULT, _SCRATCH, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)  # registers; the context comes in the scratch one


def _code(op: int, register: int, *, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return _INSTRUCTION.pack(op, register | source << 4, offset, signed)


_HEAD = b"".join(
    (
        _code(_LOAD_WORD, _ACCESS, source=_SCRATCH, offset=0),
        _code(_MOVE, _TYPE, source=_ACCESS),
        _code(_AND_VALUE, _TYPE, value=0xFFFF),
        _code(_SHIFT_RIGHT, _ACCESS, value=16),
        _code(_LOAD_WORD, _MAJOR, source=_SCRATCH, offset=4),
        _code(_LOAD_WORD, _MINOR, source=_SCRATCH, offset=8),
    )
)


def device_program(access: Access) -> bytes:
    """Instructions of 8 bytes for BPF_PROG_LOAD."""
    parts = [_HEAD]
    for node, mask in sorted(access.exceptions.items()):
        parts.append(_exception(node, mask, allow=not access.default_allow))
    parts.append(_return(allow=access.default_allow))
    return b"".join(parts)


def _return(*, allow: bool) -> bytes:
    return _code(_MOVE_VALUE, _RESULT, value=int(allow)) + _code(_EXIT, 0)


def _exception(node: Node, mask: int, *, allow: bool) -> bytes:
    """One test after the other, each of which jumps behind the exception when it fails."""
    kind, major, minor = node
    tests = [(_JUMP_UNLESS_VALUE, _TYPE, 0, _TYPES[kind])]
    if major != ANY:
        tests.append((_JUMP_UNLESS_VALUE, _MAJOR, 0, major))
    if minor != ANY:
        tests.append((_JUMP_UNLESS_VALUE, _MINOR, 0, minor))
    if mask != ALL:
        tests += [(_MOVE, _SCRATCH, _ACCESS, 0), (_AND_VALUE, _SCRATCH, 0, mask)]
        tests.append((_JUMP_UNLESS_EQUAL, _SCRATCH, _ACCESS, 0) if allow else (_JUMP_IF_VALUE, _SCRATCH, 0, 0))
    codes = []
    for index, (op, register, source, value) in enumerate(tests):
        jumps = op in (_JUMP_UNLESS_VALUE, _JUMP_UNLESS_EQUAL, _JUMP_IF_VALUE)
        behind = len(tests) - index + 1 if jumps else 0  # over the other tests and the two instructions of the return
        codes.append(_code(op, register, source=source, offset=behind, value=value))
    return b"".join(codes) + _return(allow=allow)
