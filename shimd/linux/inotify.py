"""inotify(7)."""

from __future__ import annotations

import os
import struct

from shimd.linux._libc import NR, encode, syscall

IN_MODIFY = 0x2
IN_DELETE_SELF = 0x400
IN_IGNORED = 0x8000
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

_EVENT = struct.Struct("=iIII")


def inotify_init1(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    return syscall(NR["inotify_init1"], flags)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    return syscall(NR["inotify_add_watch"], fd, encode(path), mask, path=path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    syscall(NR["inotify_rm_watch"], fd, watch)


def read_events(fd: int) -> list[tuple[int, int]]:
    """(watch, mask) of each event that is there; BlockingIOError when there is none."""
    data = os.read(fd, 4096)
    events = []
    while data:
        watch, mask, _, length = _EVENT.unpack_from(data)
        events.append((watch, mask))
        data = data[_EVENT.size + length :]
    return events
