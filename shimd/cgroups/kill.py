"""Signals to all processes of a cgroup, those that are being forked included."""

from __future__ import annotations

import os
from errno import ENOENT

from shimd.cgroups.files import Directory, write_error
from shimd.contexts import suppress
from shimd.errors import RuntimeFailure
from shimd.linux.signals import signal
from shimd.typed import Callable, Iterable


def kill_cgroup(directory: Directory) -> bool:
    """cgroup.kill (5.14): SIGKILL to the whole subtree at once; False where the kernel has no such file."""
    try:
        directory.write("cgroup.kill", "1")
    except OSError as err:
        if err.errno == ENOENT:
            return False
        raise write_error(err, "1") from err
    return True


def signal_frozen(
    signum: int, *, pids: Callable[[], Iterable[int]], freeze: Callable[[], None], thaw: Callable[[], None]
) -> None:
    """Freeze, signal each, thaw: a frozen process neither forks away from the list nor exits and leaves its number
    to another.

    Where freezing fails, what is there is signalled all the same; a SIGKILL then goes round until a round finds
    nobody new.
    """
    with suppress(RuntimeFailure):
        freeze()
    try:
        seen: set[int] = set()
        while new := set(pids()) - seen:
            _signal_each(new, signum)
            seen |= new
            if signum != signal.SIGKILL:
                return
    finally:
        thaw()


def _signal_each(pids: Iterable[int], signum: int) -> None:
    me = os.getpid()
    for pid in pids:
        if pid != me:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
