"""bpf(2), as far as device programs of cgroup v2 need it."""

from __future__ import annotations

import struct

from shimd.linux import cdata
from shimd.linux._libc import NR, address, buffer, syscall

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6

BPF_F_ALLOW_OVERRIDE = 1
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4

_LOAD = struct.Struct("=IIQQIIQII16s")
_ATTACH = struct.Struct("=IIIII")
# All fields up to ``revision``: kernels 6.17 to 7.1 write that one however short the caller says its structure is.
_QUERY = struct.Struct("=IIIIQI4xQQQQ")
_ID = struct.Struct("=III")
_LICENSE = b"Apache\0"
_LOG_SIZE = 65536
_INSTRUCTION = 8
_MAX_PROGRAMS = 64


def prog_load(program: bytes, *, kind: int = BPF_PROG_TYPE_CGROUP_DEVICE, name: str = "") -> int:
    """A descriptor of the verified program. When the verifier refuses, the OSError's filename is the end of its log."""
    try:
        return _load(program, kind, name, None)
    except OSError as error:
        log = buffer(bytes(_LOG_SIZE))
        try:
            return _load(program, kind, name, log)
        except OSError:
            text = log.value.decode(errors="replace").strip()
            raise OSError(error.errno, error.strerror, text[-400:] or None) from None


def _load(program: bytes, kind: int, name: str, log: cdata.Memory | None) -> int:
    instructions, license_text = buffer(program), buffer(_LICENSE)
    head = (kind, len(program) // _INSTRUCTION, address(instructions), address(license_text))
    debug = (0, 0, 0) if log is None else (1, len(log), address(log))
    attr = _LOAD.pack(*head, *debug, 0, 0, name.encode()[:15])
    return syscall(NR["bpf"], BPF_PROG_LOAD, buffer(attr), len(attr))


def prog_attach(
    cgroup_fd: int, program_fd: int, *, kind: int = BPF_CGROUP_DEVICE, flags: int = 0, replace_fd: int = 0
) -> None:
    """``replace_fd`` with BPF_F_ALLOW_MULTI | BPF_F_REPLACE swaps a program without a moment without one."""
    attr = _ATTACH.pack(cgroup_fd, program_fd, kind, flags, replace_fd)
    syscall(NR["bpf"], BPF_PROG_ATTACH, buffer(attr), len(attr))


def prog_detach(cgroup_fd: int, program_fd: int, *, kind: int = BPF_CGROUP_DEVICE) -> None:
    attr = _ATTACH.pack(cgroup_fd, program_fd, kind, 0, 0)
    syscall(NR["bpf"], BPF_PROG_DETACH, buffer(attr), len(attr))


def prog_query(cgroup_fd: int, *, kind: int = BPF_CGROUP_DEVICE) -> list[int]:
    """The ids of the programs that are attached to this cgroup itself; ENOSPC when there are more than 64."""
    ids = buffer(bytes(4 * _MAX_PROGRAMS))
    attr = buffer(_QUERY.pack(cgroup_fd, kind, 0, 0, address(ids), _MAX_PROGRAMS, 0, 0, 0, 0))
    syscall(NR["bpf"], BPF_PROG_QUERY, attr, len(attr))
    count: int = _QUERY.unpack(attr.raw)[5]
    return list(struct.unpack(f"={count}I", ids.raw[: 4 * count]))


def prog_get_fd_by_id(program_id: int) -> int:
    """Close-on-exec, as all descriptors of bpf(2)."""
    attr = _ID.pack(program_id, 0, 0)
    return syscall(NR["bpf"], BPF_PROG_GET_FD_BY_ID, buffer(attr), len(attr))
