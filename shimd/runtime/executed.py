"""A spare (``shimd.init.spare``) that is executed for one launch, instead of a fork of the launcher.

- The program that a container's init runs up to its execve must be one that nobody can write to (CVE-2019-5736). Here
  it is a clone of the interpreter's file on a read-only file system, or a sealed copy in memory.
- It loads what an init needs while its launcher reads the configuration, and takes part of the work off that process.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from shimd.linux.selfexe import spawn_python
from shimd.linux.signals import signal
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.init.request import Launched, LaunchRequest

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = """
import gc, sys
gc.disable()
sys.path.append(sys.argv[1])
from shimd.image import load
load("spare")
from shimd.init.spare import be_spare
be_spare(int(sys.argv[2]))
"""


class Executed:
    """A spare: it ends when its channel does. ``protection`` tells how its executable is kept from being written to."""

    @classmethod
    def prepared(cls) -> Executed | None:
        """Ahead of the launch, which will tell what is wrong when there is none."""
        try:
            return cls()
        except OSError:
            return None

    def __init__(self) -> None:
        """Raises OSError."""
        self._channel, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            fd = theirs.fileno()
            self._pid, self.protection = spawn_python(_PROGRAM, _ROOT, str(fd), keep=fd)
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def launch(self, request: LaunchRequest) -> Launched:
        """Used once, in place of ``end``. Raises RuntimeFailure."""
        from shimd.errors import RuntimeFailure
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
        os.kill(self._pid, signal.SIGKILL)  # it may still be loading
        os.waitpid(self._pid, 0)
