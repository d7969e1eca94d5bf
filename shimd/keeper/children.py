"""The processes that the keeper made: their names, their pidfds, and how they ended, until somebody says that this is
known.

Every exit is on disk before it is reported. Other children are orphans that a container in the host's pid namespace
left behind, and stages: they are reaped and that is all.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from errno import EEXIST

from shimd.keeper.protocol import Exit

# (wait status, when, resource usage): what is left of a process once it is reaped.
_Remains = tuple[int, int, "resource.struct_rusage"]


class Child:
    """``exit`` is None while it lives. The pidfd is this record's."""

    __slots__ = ("exit", "exit_file", "forgotten", "name", "pid", "pidfd")

    def __init__(self, name: str, pid: int, pidfd: int, exit_file: str) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = pidfd
        self.exit_file = exit_file
        self.exit: Exit | None = None
        self.forgotten = False


class Children:
    def __init__(self) -> None:
        self._by_name: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._reserved: set[str] = set()
        self._early: dict[int, _Remains] = {}

    def get(self, name: str) -> Child | None:
        return self._by_name.get(name)

    def alive(self) -> tuple[tuple[str, int], ...]:
        return tuple([(child.name, child.pid) for child in self._by_pid.values()])

    def exits(self) -> tuple[Exit, ...]:
        """Those that are not forgotten."""
        return tuple([child.exit for child in self._by_name.values() if child.exit is not None])

    def busy(self) -> bool:
        return bool(self._by_pid or self._reserved)

    def reserve(self, name: str) -> None:
        """Before the launch; ``add`` or ``release`` comes after. OSError EEXIST."""
        if name in self._by_name or name in self._reserved:
            raise OSError(EEXIST, f"{name} is launched already")
        self._reserved.add(name)

    def release(self, name: str) -> None:
        self._reserved.discard(name)
        if not self._reserved:
            self._early.clear()

    def add(self, name: str, pid: int, pidfd: int, exit_file: str) -> Exit | None:
        """A launch that succeeded; its exit when it is over already."""
        child = Child(name, pid, pidfd, exit_file)
        self._by_name[name] = child
        self._by_pid[pid] = child
        remains = self._early.pop(pid, None)
        self.release(name)
        return None if remains is None else self._end(child, remains)

    def reap(self) -> list[Exit]:
        """Of all that ended since the last time. A pid that is not known is kept in mind while a launch is under way:
        a stage may be about to report it.
        """
        exits: list[Exit] = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return exits
            if pid == 0:
                return exits
            remains = (status, time.time_ns(), usage)
            child = self._by_pid.get(pid)
            if child is not None:
                exits.append(self._end(child, remains))
            elif self._reserved:
                self._early[pid] = remains

    def forget(self, name: str) -> None:
        child = self._by_name.get(name)
        if child is None:
            return
        child.forgotten = True
        if child.exit is not None:
            os.close(child.pidfd)
            del self._by_name[name]

    def _end(self, child: Child, remains: _Remains) -> Exit:
        status, at, usage = remains
        times = (round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6))
        exit_ = child.exit = Exit(child.name, child.pid, status, at, *times, usage.ru_maxrss)
        del self._by_pid[child.pid]
        if child.forgotten:  # its directory may be another container's by now
            self.forget(child.name)
        elif child.exit_file:
            _write_record(child.exit_file, exit_)
        return exit_


def _write_record(path: str, exit_: Exit) -> None:
    """Renamed into place, so that nobody reads half of it. A directory that is gone is no reason to stop reaping."""
    temporary = path + ".tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600)
        try:
            os.write(fd, encode_record(exit_))
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as e:
        print(f"keeper: write exit record of {exit_.name}: {e}", file=sys.stderr, flush=True)


def encode_record(exit_: Exit) -> bytes:
    """JSON, without the json module, which every process forked from here would carry along."""
    name = exit_.name.replace("\\", "\\\\").replace('"', '\\"')
    numbers = "".join(f', "{field}": {value}' for field, value in zip(Exit._fields[1:], exit_[1:], strict=True))
    return f'{{"name": "{name}"{numbers}}}\n'.encode()
