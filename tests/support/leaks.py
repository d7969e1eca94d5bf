"""What a test may leave behind: nothing. A ``Snapshot`` before, one after, and the difference is the leak.

Some things end a moment after the call that ended them returned (the kernel frees a mount namespace from a work queue,
a thread leaves after it gave its result), so ``leaked`` looks again for a bounded time before it reports. This is the
only place in the tests that polls: there is no event for "nothing is left".
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import session, wait

SETTLE_SECONDS = 2.0
_OTHERS = "shimd-test-"  # what the tags of all runs begin with
PF_EXITING = 0x4
SYSTEMD_SUFFIXES = (".service", ".scope", ".slice", ".mount", ".socket", ".swap")


class Scope(NamedTuple):
    """How wide to look: tests without privileges cannot leave mounts or cgroups, and looking costs time."""

    machine: bool
    alone: bool


class Snapshot(NamedTuple):
    """Everything that must be the same after a test, as printable lines by kind."""

    descriptors: frozenset[str]
    processes: frozenset[str]
    threads: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]


def take(scope: Scope) -> Snapshot:
    return Snapshot(
        descriptors=frozenset(_descriptors()),
        processes=frozenset(marked_processes() if scope.machine else _children()),
        threads=frozenset(f"{t.name} ({t.ident})" for t in threading.enumerate()),
        mounts=frozenset(_mounts() if scope.machine else ()),
        cgroups=frozenset(_cgroups() if scope.machine else ()),
        files=frozenset(_runtime_files() if scope.machine else ()),
    )


def leaked(before: Snapshot, scope: Scope) -> list[str]:
    """What is there now and was not before, one line each; waits up to SETTLE_SECONDS for it to go away."""
    deadline = time.monotonic() + SETTLE_SECONDS
    pause = 0.001
    while left := _difference(before, take(scope), scope):
        if time.monotonic() > deadline:
            return left
        if pause == 0.016:
            gc.collect()  # a file that only this closes is reported too: as a ResourceWarning, which is an error
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return []


def sweep() -> None:
    """End what this run has left and remove its cgroups: once, when all was reported."""
    pids = [int(line.split()[0]) for line in marked_processes()]
    cgroups = {path for path in _cgroups() if session.TAG in path or _has_any(path, pids)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            wait.exited(pidfd)
            os.close(pidfd)
    for path in sorted(cgroups, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _has_any(cgroup: str, pids: list[int]) -> bool:
    with contextlib.suppress(OSError), open(f"{cgroup}/cgroup.procs") as file:
        return not set(map(int, file.read().split())).isdisjoint(pids)
    return False


def _difference(before: Snapshot, after: Snapshot, scope: Scope) -> list[str]:
    lines = []
    for kind, old, new in zip(Snapshot._fields, before, after, strict=True):
        added = sorted(new - old)
        if kind == "cgroups":
            added = [path for path in added if _is_ours(path, scope)]
        if kind == "files":
            added = [path for path in added if session.TAG in path or (scope.alone and _OTHERS not in path)]
        lines += [f"{kind}: {item}" for item in added]
    return lines


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        yield f"{name} -> {target}"


def _children() -> Iterator[str]:
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                pids = file.read().split()
        except FileNotFoundError:
            continue
        yield from filter(None, map(_process_line, pids))


def marked_processes() -> Iterator[str]:
    mark = f"{session.SLACK_NS}\n"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/timerslack_ns") as file:
                slack = file.read()
        except OSError:
            continue  # gone in the meantime
        if slack == mark and int(pid) != os.getpid():
            yield from filter(None, [_process_line(pid)])


def _process_line(pid: str) -> str:
    """ "pid start-time name"; without the state, which changes, and without the parent, which may. "" for a process
    that is gone or waits for process 1; and for the spare one of a living keeper, which uses it up and makes another
    whenever it likes.
    """
    stat = _stat(pid)
    if stat is None:
        return ""
    is_spare = stat.name == "shimd:[spare]" and _name(stat.parent) == "shimd-keeper"
    return "" if is_spare or _waits_for_process_1(pid, stat) else f"{pid} {stat.start} {stat.name}"


class _Stat(NamedTuple):
    """Of proc_pid_stat(5)."""

    name: str
    state: str
    parent: str
    flags: int
    start: str


def _stat(pid: str) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except OSError:
        return None
    fields = rest.split()
    return _Stat(name, fields[0], fields[1], int(fields[6]), fields[19])


def _waits_for_process_1(pid: str, stat: _Stat) -> bool:
    """Dead, and all its own is freed but its number, which process 1 has yet to reap: that looks every two seconds,
    and later on a busy machine. So it is with an orphan, and with the first process of a pid namespace in which there
    is an orphan of outside, by whose end it waits (zap_pid_ns_processes in the kernel).
    """
    if stat.state == "Z":
        return stat.parent == "1"
    return bool(stat.flags & PF_EXITING) and any(map(_is_orphan_zombie, _others_in_pid_namespace(pid)))


def _is_orphan_zombie(pid: str) -> bool:
    stat = _stat(pid)
    return stat is not None and (stat.state, stat.parent) == ("Z", "1")


def _others_in_pid_namespace(pid: str) -> Iterator[str]:
    """Of the first process of a pid namespace."""
    numbers = _status(pid, "NSpid:").split()
    if numbers[-1:] == ["1"]:
        namespace = _pid_namespace(pid)
        for other in filter(str.isdigit, os.listdir("/proc")):
            if other != pid and _pid_namespace(other) == namespace:
                yield other


def _pid_namespace(pid: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _status(pid: str, field: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(field):
                return line.removeprefix(field)
    return ""


def _name(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().rstrip("\n")
    return ""


def _mounts() -> Iterator[str]:
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            yield f"{fields[0]} {fields[4]} ({line.partition(' - ')[2].split()[0]})"


def cgroup_mount_points() -> list[str]:
    """The mount points of all cgroup hierarchies, v1 and v2."""
    with open("/proc/self/mountinfo") as file:
        rows = [line.split(" - ") for line in file]
    return [left.split()[4] for left, right in rows if right.startswith(("cgroup ", "cgroup2 "))]


def _cgroups() -> Iterator[str]:
    for top in cgroup_mount_points():
        for folder, names, _ in os.walk(top):
            for name in names:
                yield os.path.join(folder, name)


def _is_ours(path: str, scope: Scope) -> bool:
    """A cgroup that appeared is ours by its name or by a process in it; an empty one only if no other test run can
    have made it.
    """
    if session.TAG in path:
        return True
    if _OTHERS in path or path.endswith(SYSTEMD_SUFFIXES):
        return False
    try:
        with open(f"{path}/cgroup.procs") as file:
            pids = file.read().split()
    except OSError:
        return False  # gone, so nothing is left
    if not pids:
        return scope.alone
    marked = {line.split()[0] for line in marked_processes()}
    return not marked.isdisjoint(pids)


def _runtime_files() -> Iterator[str]:
    """Names that any part of shimd makes directly under /run and /tmp; of the directory of states, which stays as
    runc's does, what is in it.
    """
    for folder, names in (("/run", ("shimd", "shimrun")), ("/tmp", ("shimd", "shimrun")), ("/run/shimrun", ("",))):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name.startswith(names) and f"{folder}/{name}" != "/run/shimrun":
                yield f"{folder}/{name}"
