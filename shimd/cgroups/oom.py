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

    def is_suspect(self) -> bool:
        """Whether there may have been a kill after the last ``consume``, of which nothing but the end of the
        container's first process by SIGKILL can tell.
        """

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
        return kills_in(directory.read_or(file, ""))


def kills_in(text: str) -> int | None:
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

    def is_suspect(self) -> bool:
        return False

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
    _others: tuple[str, ...] = ()

    def _register(self) -> int:
        self._poll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._files: list[int] = []
        try:
            for name in (self._file, *self._others):
                self._files.append(os.open(f"{self._mount}/{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC))
                self._poll.register(self._files[-1], select.EPOLLPRI)
        except OSError as err:
            self.close()
            raise RuntimeFailure(f"cannot watch for OOM kills: {err.filename}: {errno_text(err)}") from err
        return self._poll.fileno()

    def consume(self) -> int:
        if not self._files:
            return 0
        try:
            text, *_ = [os.pread(fd, 4096, 0).decode() for fd in self._files]
        except OSError:  # ENODEV: the cgroup was removed, which would be reported for ever
            self._forget_files()
            return 0
        count = kills_in(text) or 0
        grown = count - self._seen
        self._seen = count
        return grown

    def close(self) -> None:
        self._forget_files()
        self._poll.close()
        self._fd = -1

    def _forget_files(self) -> None:
        while self._files:
            os.close(self._files.pop())


class WatchUnit(WatchV2):
    """The same for a cgroup that systemd removes as soon as the last process has ended. The kernel tells of changes of
    memory.events at most every 10 ms, which is too late for a container with one process.

    So its death is waited for, too; with an epoll one hears of that before systemd, which uses inotify, does. When
    systemd was quicker all the same, the cgroup above still knows how many kills there were, among all that it holds.
    """

    _others = ("cgroup.events",)

    def __init__(self, mount: str, path: str) -> None:
        super().__init__(mount, path)
        self._above = self._kills_above()

    def _kills_above(self) -> int:
        return kill_count(self._mount, os.path.dirname(self._path), self._file) or 0

    def consume(self) -> int:
        above = self._kills_above()  # before our own, or a kill in between would be in this one alone
        killed = super().consume()
        if self._files:
            self._above = self._kills_above() if killed else above
        return killed

    def is_suspect(self) -> bool:
        return not self._files and self._kills_above() > self._above
