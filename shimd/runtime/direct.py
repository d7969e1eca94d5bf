"""The launcher of a command line, whose caller must be able to reap the container: processes are children of ours.

They are not forks of this process, but come from a spare (``shimd.init.spare``) that was executed for it:

- The program that a container's init runs up to its execve must be one that nobody can write to (CVE-2019-5736). Here
  it is a clone of the interpreter's file on a read-only file system, or a sealed copy in memory.
- It loads what an init needs while we read the configuration, and takes part of the work off this process.
"""

from __future__ import annotations

import os
import sys
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shimd.errors import RuntimeFailure
from shimd.linux.mount import OVERLAYFS_SUPER_MAGIC, statfs_type
from shimd.linux.selfexe import protected_executable
from shimd.linux.signals import signal
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.init.request import Launched, LaunchRequest
    from shimd.keeper.protocol import Exit

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from shimd.init.spare import be_spare; be_spare(int(sys.argv[2]))"


class DirectLauncher:
    """``hold`` and ``exit_file`` of a request are the keeper's. One thread. ``protection`` tells how the executable of
    the last spare is kept from being written to.
    """

    def __init__(self) -> None:
        self._spare: _Executed | None = None
        self.protection = ""

    def prepare(self) -> None:
        """Execute the spare of the next launch, so that it is there in time. What is wrong the launch will tell."""
        with suppress(RuntimeFailure):
            self._spare = self._spare or _Executed()

    def close(self) -> None:
        """A spare that was prepared in vain ends."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def launch(self, request: LaunchRequest) -> Launched:
        spare, self._spare = self._spare or _Executed(), None
        self.protection = spare.protection
        return spare.launch(request)

    def discard(self, name: str, launched: Launched) -> None:
        from shimd.runtime.launch import kill_and_wait

        kill_and_wait(launched.pidfd)
        os.waitpid(launched.pid, 0)

    def forget(self, *names: str) -> None:
        """There are no exit records."""

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


class _Executed:
    """A spare: it ends when its channel does."""

    def __init__(self) -> None:
        """Raises RuntimeFailure."""
        self._channel, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            self._pid, self.protection = _execute(theirs)
        except OSError as error:
            self._channel.close()
            raise RuntimeFailure(f"execute a protected copy of the interpreter: {error.strerror}") from error
        finally:
            theirs.close()

    def launch(self, request: LaunchRequest) -> Launched:
        """Used once, in place of ``end``. Raises RuntimeFailure."""
        from shimd.init.pending import Pending, send_task

        pidfd = os.pidfd_open(self._pid)
        try:
            send_task(self._channel, request)
        except OSError as error:
            os.close(pidfd)
            self.end()
            raise RuntimeFailure(f"make process: the spare process does not answer: {error.strerror}") from error
        pending = Pending(self._pid, pidfd, self._channel)
        try:
            return pending.finish()
        finally:
            for pid in filter(None, (self._pid, pending.stage)):
                os.waitpid(pid, 0)

    def end(self) -> None:
        self._channel.close()
        os.waitpid(self._pid, 0)


def _execute(channel: socket) -> tuple[int, str]:
    """The pid, and how the executable is protected. argv[0] is where Python looks for its library from."""
    interpreter: str = getattr(sys, "_base_executable", sys.executable)
    executable = protected_executable(interpreter)
    fd = channel.fileno()
    argv = [interpreter, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, _ROOT, str(fd)]
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if "LD_LIBRARY_PATH" in os.environ:  # an interpreter outside of /usr may need it to start at all
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, fd, fd),  # clears close-on-exec
    ]
    try:
        protection = "overlayfs" if statfs_type(executable) == OVERLAYFS_SUPER_MAGIC else "memfd"
        return os.posix_spawn(f"/proc/self/fd/{executable}", argv, env, file_actions=actions), protection
    finally:
        os.close(executable)
