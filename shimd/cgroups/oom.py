"""Descriptors that become readable when the kernel kills for want of memory in a container's cgroup.

cgroup v2: epoll on ``memory.events``, whose ``oom_kill`` counts the whole subtree. cgroup v1: an eventfd
registered with ``cgroup.event_control``. Both also fire when the cgroup is removed. The v1 event comes *before* the
victim is chosen, so the counter may not have moved yet: then one kill is reported on credit, and the next growth of
the counter is reduced by it.
"""

from __future__ import annotations

import os
import select

from shimd.cgroups import files
from shimd.cgroups.files import errno_text, open_directory
from shimd.errors import RuntimeFailure
from shimd.typed import Protocol


class Watch(Protocol):
    def fileno(self) -> int:
        """Readable when there may be something to consume; never blocks."""

    def consume(self) -> int:
        """The number of OOM kills since the last call; 0 when the cgroup was removed."""

    def close(self) -> None:
        """Idempotent."""


def kill_count(mount: str, path: str, file: str) -> int | None:
    """``oom_kill`` of memory.events (v2) or memory.oom_control (v1); None when the cgroup or its memory controller
    is gone.
    """
    directory = files.open_if_there(mount, path)
    if directory is None:
        return None
    with directory:
        text = directory.read_or(file, "")
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return None


class _Watch:
    _file: str

    def __init__(self, mount: str, path: str) -> None:
        self._mount, self._path = mount, path
        self._fd = self._register()
        self._seen = kill_count(mount, path, self._file) or 0

    def _register(self) -> int:
        raise NotImplementedError

    def fileno(self) -> int:
        return self._fd

    def _grown(self) -> int | None:
        count = kill_count(self._mount, self._path, self._file)
        if count is None:
            return None
        grown = count - self._seen
        self._seen = count
        return grown

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WatchV1(_Watch):
    """Raises RuntimeFailure when the kernel refuses the registration."""

    _file = "memory.oom_control"

    def __init__(self, mount: str, path: str) -> None:
        self._credit = 0
        super().__init__(mount, path)

    def _register(self) -> int:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with open_directory(self._mount, self._path) as directory:
                control = directory.open(self._file, os.O_RDONLY)
                try:
                    directory.write("cgroup.event_control", f"{event} {control}")
                finally:
                    os.close(control)
        except OSError as err:
            os.close(event)
            raise RuntimeFailure(f"cannot watch for OOM kills: {err.filename}: {errno_text(err)}") from err
        return event

    def consume(self) -> int:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0
        grown = self._grown()
        if grown is None:
            return 0
        settled = min(self._credit, grown)
        self._credit -= settled
        if grown == settled:
            self._credit += 1
            return 1
        return grown - settled


class WatchV2(_Watch):
    """Raises RuntimeFailure when there is no memory controller.

    By an epoll on the file, which reports changes as EPOLLPRI until the file is read again: of inotify instances a
    user has 128 only, and root is no exception.
    """

    _file = "memory.events"

    def _register(self) -> int:
        path = f"{self._mount}/{self._path}/{self._file}"
        try:
            self._events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise RuntimeFailure(f"cannot watch for OOM kills: {err.filename}: {errno_text(err)}") from err
        self._poll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._poll.register(self._events, select.EPOLLPRI)
        return self._poll.fileno()

    def consume(self) -> int:
        if self._events < 0:
            return 0
        try:
            os.pread(self._events, 4096, 0)
        except OSError:  # ENODEV: the cgroup was removed, which would be reported for ever
            self._forget_file()
            return 0
        return self._grown() or 0

    def close(self) -> None:
        self._forget_file()
        self._poll.close()
        self._fd = -1

    def _forget_file(self) -> None:
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
