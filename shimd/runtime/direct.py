"""The launcher that clones by itself: for ``shimrun``, whose caller must be able to reap the container, and for tests.

Apart from ``launch`` because it loads all that an init needs, which a daemon with a keeper has no use for.
"""

from __future__ import annotations

import os
import time

from shimd.init.request import Launched, LaunchRequest
from shimd.init.spawn import clone_into_plan
from shimd.keeper.protocol import Exit
from shimd.runtime.launch import kill_and_wait


class DirectLauncher:
    """The process becomes a child of this one, which has one thread. ``hold`` and ``exit_file`` of a request are the
    keeper's.
    """

    def launch(self, request: LaunchRequest) -> Launched:
        return clone_into_plan(request)

    def discard(self, name: str, launched: Launched) -> None:
        kill_and_wait(launched.pidfd)
        self.wait(name, launched.pid)

    def forget(self, *names: str) -> None:
        """There are no exit records."""

    def wait(self, name: str, pid: int) -> Exit:
        """Reap a process of ours when it ends."""
        _, status, usage = os.wait4(pid, 0)
        now = time.time_ns()
        utime, stime = round(usage.ru_utime * 1_000_000), round(usage.ru_stime * 1_000_000)
        return Exit(name, pid, status, now, utime, stime, usage.ru_maxrss)
