"""The launcher of a command line, whose caller must be able to reap the container: processes are children of ours.

They are not forks of this process, but come from a spare that was executed for it (``shimd.runtime.executed``).
"""

from __future__ import annotations

import os
import time

from shimd.contexts import contextmanager
from shimd.errors import RuntimeFailure
from shimd.linux.signals import signal
from shimd.runtime.executed import Executed
from shimd.typed import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from shimd.init.request import Launched, LaunchRequest
    from shimd.keeper.protocol import Exit


class DirectLauncher:
    """``hold`` and ``exit_file`` of a request are the keeper's. One thread. ``protection`` tells how the executable of
    the last spare is kept from being written to.
    """

    def __init__(self, spare: Executed | None = None) -> None:
        """``spare`` is for the next launch; without one the launch executes it."""
        self._spare = spare
        self.protection = ""

    def close(self) -> None:
        """A spare that was prepared in vain ends."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def launch(self, request: LaunchRequest) -> Launched:
        try:
            spare, self._spare = self._spare or Executed(), None
        except OSError as error:
            raise RuntimeFailure(f"execute a protected copy of the interpreter: {error.strerror}") from error
        self.protection = spare.protection
        return spare.launch(request)

    def discard(self, name: str, launched: Launched) -> None:
        from shimd.runtime.launch import kill_and_wait

        kill_and_wait(launched.pidfd)
        os.waitpid(launched.pid, 0)

    def forget(self, *names: str) -> None:
        """There are no exit records."""

    def end(self, name: str) -> None:
        """It has ended with its launcher."""

    @contextmanager
    def user_namespace(self, name: str) -> Iterator[Launched]:
        """A fork will do: nothing of a container ever sees it, and the spare is for better things."""
        from shimd.init.request import Launched
        from shimd.linux.process import CLONE_NEWUSER, clone3, set_pdeathsig

        try:
            pid, pidfd = clone3(CLONE_NEWUSER)
        except OSError as error:
            raise RuntimeFailure(f"make process: {error.strerror}") from error
        if pid == 0:
            try:
                set_pdeathsig(signal.SIGKILL)
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        launched = Launched(pid, pidfd)
        try:
            yield launched
        finally:
            self.discard(name, launched)
            os.close(pidfd)

    def wait(self, name: str, pid: int) -> Exit:
        """Reap a process of ours when it ends."""
        from shimd.keeper.protocol import Exit

        _, status, usage = os.wait4(pid, 0)
        now = time.time_ns()
        utime, stime = round(usage.ru_utime * 1_000_000), round(usage.ru_stime * 1_000_000)
        return Exit(name, pid, status, now, utime, stime, usage.ru_maxrss)
