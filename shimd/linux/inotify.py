"""What happens to files, FIFOs included, inotify(7)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from shimd.linux._libc import NR, encode, syscall

IN_ACCESS = 0x1  # something was read

_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, length of the name that follows
_BUFFER = 16 * 1024


def inotify_init1(flags: int = os.O_NONBLOCK | os.O_CLOEXEC) -> int:
    """EMFILE beyond the user's share of instances, 128 in all."""
    return syscall(NR["inotify_init1"], flags)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """The watch descriptor, the same for each name of one file."""
    return syscall(NR["inotify_add_watch"], fd, encode(path), mask, path=path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    syscall(NR["inotify_rm_watch"], fd, watch)


def read_events(fd: int) -> Iterator[tuple[int, int]]:
    """Those that are there: watch descriptor and mask."""
    try:
        data = os.read(fd, _BUFFER)
    except BlockingIOError:
        return
    offset = 0
    while offset < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, offset)
        yield watch, mask
        offset += _EVENT.size + length
