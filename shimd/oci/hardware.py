"""The rules about pieces of the machine that a container asks for; see ``shimd.oci.rules``."""

from __future__ import annotations

from collections.abc import Iterator

from shimd.errors import Problem
from shimd.oci.model import Spec
from shimd.oci.values import cpu_list

Problems = Iterator[Problem]

_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_NODES_OR_NONE = ("MPOL_PREFERRED",)


def memory_policy(spec: Spec) -> Problems:
    """set_mempolicy(2)."""
    wanted = spec.linux.memory_policy
    if wanted is None:
        return
    at = "/linux/memoryPolicy"
    count = len(cpu_list(wanted.nodes)) if wanted.nodes else 0
    if not wanted.mode:
        yield Problem(f"{at}/mode", 'invalid memory policy mode ""')
    elif wanted.mode in _WITHOUT_NODES:
        if count:
            yield Problem(f"{at}/nodes", f"{wanted.mode}: memory policy mode requires 0 nodes but got {count}")
    elif not count and wanted.mode not in _NODES_OR_NONE:
        yield Problem(f"{at}/nodes", f"{wanted.mode}: memory policy mode requires at least one node but got 0")
    if {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"} <= set(wanted.flags):
        yield Problem(f"{at}/flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")
