"""Waiting for events with a deadline: on descriptors, never by sleeping. Every function raises Timeout."""

from __future__ import annotations

import os
import select
import time

SECONDS = 20.0
"""How long a test waits for what should come at once, on a busy machine."""


class Timeout(AssertionError):
    """What a test waited for did not come."""


def readable(fd: int, *, seconds: float = SECONDS, what: str = "") -> None:
    """Until ``fd`` can be read, or its other end was closed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(max(0, seconds) * 1000):
        raise Timeout(f"nothing came within {seconds:.1f} s: {what or os.readlink(f'/proc/self/fd/{fd}')}")


def exited(pidfd: int, *, seconds: float = SECONDS, what: str = "") -> None:
    """Until the process ends, whoever its parent is."""
    readable(pidfd, seconds=seconds, what=what or "the end of a process")


def process_gone(pid: int, *, seconds: float = SECONDS) -> None:
    """Until the process ends; at once when there is none of that number."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        exited(pidfd, seconds=seconds, what=f"the end of process {pid}")
    finally:
        os.close(pidfd)


def children() -> set[int]:
    """The pids of this process's children, dead ones that nobody waited for included."""
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            pids.update(map(int, file.read().split()))
    return pids


def reap_children_but(known: set[int], *, seconds: float = SECONDS) -> None:
    """Wait for the children that a subreaper came by; those ``known`` may be what another test left, and live on."""
    while new := children() - known:
        for pid in new:
            process_gone(pid, seconds=seconds)
            os.waitpid(pid, 0)


def read_some(fd: int, *, seconds: float = SECONDS, what: str = "", size: int = 65536) -> bytes:
    """The next bytes; b"" at the end of the file. A pty whose last other end was closed reports EIO: also the end."""
    readable(fd, seconds=seconds, what=what)
    try:
        return os.read(fd, size)
    except OSError as e:
        if e.errno == 5:
            return b""
        raise


def read_until(fd: int, marker: bytes, *, seconds: float = SECONDS) -> bytes:
    """All bytes up to and with the first read that completes ``marker``; AssertionError if the file ends before."""
    deadline = time.monotonic() + seconds
    data = b""
    while marker not in data:
        chunk = read_some(fd, seconds=deadline - time.monotonic(), what=f"{marker!r}; so far {data!r}")
        assert chunk, f"ended without {marker!r}: {data!r}"
        data += chunk
    return data


def read_to_end(fd: int, *, seconds: float = SECONDS) -> bytes:
    """All bytes up to the end of the file."""
    deadline = time.monotonic() + seconds
    chunks = []
    while chunk := read_some(fd, seconds=deadline - time.monotonic(), what="the end of the output"):
        chunks.append(chunk)
    return b"".join(chunks)


def any_readable(fds: tuple[int, ...], *, seconds: float = SECONDS, what: str = "") -> None:
    """Until one of them can be read."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    if not poll.poll(max(0, seconds) * 1000):
        raise Timeout(f"nothing came within {seconds:.1f} s: {what}")


def is_readable(fd: int) -> bool:
    """Whether a read would return now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
