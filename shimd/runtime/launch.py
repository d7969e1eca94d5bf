"""Who makes the process: the keeper, whose child it becomes, or the caller itself (``direct``)."""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from shimd.contexts import closing, contextmanager
from shimd.errors import NotFound
from shimd.init.request import Launched, LaunchRequest
from shimd.linux.process import CLONE_NEWUSER, pidfd_send_signal
from shimd.linux.signals import signal
from shimd.typed import TYPE_CHECKING, AbstractContextManager, Iterator, Protocol

if TYPE_CHECKING:  # a command line has no keeper, and no need of what its client loads
    from shimd.keeper.client import KeeperClient

__all__ = ["KeeperLauncher", "LaunchRequest", "Launched", "Launcher"]


class Launcher(Protocol):
    """Raises RuntimeFailure when the kernel refuses, Unavailable without a keeper."""

    def launch(self, request: LaunchRequest) -> Launched:
        """Make the process; the descriptors of the request stay the caller's, the pidfd becomes it."""

    def discard(self, name: str, launched: Launched) -> None:
        """Kill a process that nobody is to hear of and wait until it is dead. The pidfd stays open."""

    def forget(self, *names: str) -> None:
        """The exits of these launches are of no more interest, whether they have happened or not."""

    def end(self, name: str) -> None:
        """``discard`` what another one has launched, if anything is."""

    def user_namespace(self, name: str) -> AbstractContextManager[Launched]:
        """A process in a new user namespace, without maps, that does nothing; dead in the end."""


class KeeperLauncher:
    def __init__(self, client: KeeperClient) -> None:
        self.client = client

    def launch(self, request: LaunchRequest) -> Launched:
        return self.client.launch(request)

    def discard(self, name: str, launched: Launched) -> None:
        self.client.forget(name)
        kill_and_wait(launched.pidfd)

    def forget(self, *names: str) -> None:
        self.client.forget(*names)

    def end(self, name: str) -> None:
        try:
            launched = self.client.pidfd(name)
        except NotFound:
            return
        try:
            self.discard(name, launched)
        finally:
            os.close(launched.pidfd)

    @contextmanager
    def user_namespace(self, name: str) -> Iterator[Launched]:
        """It ends when we do, too: end of file is an answer to what it waits for."""
        from shimd.plan import ops, wire

        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        with closing(ours), closing(theirs):
            steps = wire.dumps((ops.Step(ops.Sync("maps"), ""),))
            launched = self.launch(LaunchRequest(name, CLONE_NEWUSER, b"", steps, (("control", theirs.fileno()),)))
            try:
                yield launched
            finally:
                self.discard(name, launched)
                os.close(launched.pidfd)


def kill_and_wait(pidfd: int) -> None:
    """SIGKILL, and wait for the end: nothing can catch the signal, so it is near."""
    try:
        pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_dead(pidfd)


def is_dead(pidfd: int) -> bool:
    return wait_dead(pidfd, 0)


def wait_dead(pidfd: int, timeout: float | None = None) -> bool:
    """Whether the process has ended (it may be a zombie still) within ``timeout`` seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
