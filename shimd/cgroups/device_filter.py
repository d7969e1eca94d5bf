"""Putting a device program on a cgroup of v2, and replacing one without a moment in which the cgroup has none."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, EPERM

from shimd.cgroups import ebpf
from shimd.cgroups.devices import Access
from shimd.cgroups.files import errno_text
from shimd.contexts import ExitStack
from shimd.errors import RuntimeFailure
from shimd.linux import bpf


def attach(cgroup_fd: int, access: Access, *, fresh: bool, optional: bool) -> None:
    """Programs of a cgroup and of those above it must all allow an access, so an unknown one that stays is only
    stricter.

    ``fresh``: nothing can be attached yet. ``optional``: in a user namespace bpf(2) is refused, where the kernel
    denies mknod and foreign devices anyway; a filter that allows everything is not missed either. Raises
    RuntimeFailure.
    """
    try:
        program = bpf.prog_load(ebpf.device_program(access), name="shimd_devices")
        try:
            _attach(cgroup_fd, program, [] if fresh else _attached(cgroup_fd))
        finally:
            os.close(program)
    except OSError as err:
        harmless = optional or (access.default_allow and not access.exceptions)
        if not (harmless and err.errno in (EPERM, EACCES)):
            detail = f" ({err.filename})" if err.filename else ""
            raise RuntimeFailure(f"unable to set device rules: bpf: {errno_text(err)}{detail}") from err


def _attach(cgroup_fd: int, program: int, old: list[int]) -> None:
    try:
        if len(old) == 1 and _replace(cgroup_fd, program, old[0]):
            return
        bpf.prog_attach(cgroup_fd, program, flags=bpf.BPF_F_ALLOW_MULTI)
        for fd in old:
            bpf.prog_detach(cgroup_fd, fd)
    finally:
        for fd in old:
            os.close(fd)


def _replace(cgroup_fd: int, program: int, old: int) -> bool:
    """False when the old one was attached in another mode, as by a service manager: then it goes after the new one
    is there.
    """
    try:
        bpf.prog_attach(cgroup_fd, program, flags=bpf.BPF_F_ALLOW_MULTI | bpf.BPF_F_REPLACE, replace_fd=old)
    except OSError as err:
        if err.errno in (EINVAL, EPERM):
            return False
        raise
    return True


def _attached(cgroup_fd: int) -> list[int]:
    """Descriptors of the programs on this cgroup; those that a security module keeps from us are left alone."""
    fds = []
    with ExitStack() as undo:
        for program_id in bpf.prog_query(cgroup_fd):
            try:
                fd = bpf.prog_get_fd_by_id(program_id)
            except OSError as err:
                if err.errno in (EPERM, EACCES):
                    continue
                raise
            undo.callback(os.close, fd)
            fds.append(fd)
        undo.pop_all()
    return fds
