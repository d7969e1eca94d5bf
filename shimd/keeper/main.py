"""The keeper: parent of every container process. It launches, reaps, holds descriptors, and answers; see protocol.py.

One thread, one epoll loop. Nothing here waits for a client: an answer or an exit that a client does not read is
queued for it, and a client whose queue grows too long is disconnected (exits are kept until somebody says FORGET, so
nothing is lost). Nothing waits for a stage either. SIGCHLD comes through a signalfd; children reset the signal mask
themselves.
"""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import select
import sys
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOL_SOCKET, socket

from shimd.init.main import close_others
from shimd.init.rehearsal import rehearse
from shimd.keeper.children import Children
from shimd.keeper.connection import Connection
from shimd.keeper.protocol import LOCK_NAME, SOCKET_NAME
from shimd.keeper.requests import Keeper
from shimd.keeper.spares import Spares
from shimd.linux import process
from shimd.linux.signals import signal
from shimd.typed import Callable

_BACKLOG = 128
_UCRED_SIZE = 12


def main(state_dir: str, ready: int) -> None:
    """Runs until STOP, in a child, so that whoever started this has only to wait for it to end. ``ready`` is a pipe:
    "ready" when the socket answers, else the complaint.
    """
    try:
        lock = _take_lock(state_dir)
        if lock is None:
            os.write(ready, b"ready\n")
            os._exit(0)
        if os.fork():
            os._exit(0)
        prepare_process((lock, ready))
        loop = Loop(state_dir)
    except OSError as e:
        os.write(ready, str(e).encode())
        os._exit(1)
    os.write(ready, b"ready\n")
    os.close(ready)
    loop.run()


def _take_lock(state_dir: str) -> int | None:
    """None when another keeper serves this directory. Held until the descriptor is closed, by the end of the keeper."""
    fd = os.open(os.path.join(state_dir, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return fd


def prepare_process(keep: tuple[int, ...]) -> None:
    """What children inherit: default signals, a plain umask and directory, standard streams that lead nowhere."""
    close_others(keep)
    os.chdir("/")
    os.umask(0o022)
    process.set_name("shimd-keeper")
    process.set_child_subreaper(1)
    process.set_dumpable(0)
    process.reset_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))


def raise_descriptor_limit() -> tuple[int, int]:
    """A pidfd and a few held descriptors per container add up. Returns the limit that children get back."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    return limit


def listen(path: str) -> socket:
    """The lock is held, so a socket that is there already is left from a keeper that died."""
    if os.path.lexists(path):
        os.unlink(path)
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
    os.umask(0o177)
    sock.bind(path)
    os.umask(0o022)
    sock.listen(_BACKLOG)
    return sock


class Loop:
    """Descriptors with what to do when they are ready."""

    def __init__(self, state_dir: str) -> None:
        self._path = os.path.join(state_dir, SOCKET_NAME)
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._children = Children()
        self._nofile = raise_descriptor_limit()
        self._spares = Spares(self._in_child)
        self._keeper = Keeper(self, self._children, self._spares, self._in_child)
        self._listener = listen(self._path)
        self._signals = process.signalfd(signal.SIGCHLD)
        self.watch(self._listener.fileno(), self._accept)
        self.watch(self._signals, self._reap)

    def watch(self, fd: int, ready: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call ``ready`` with the epoll events; again for another set of events."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed."""
        self._epoll.unregister(fd)
        del self._ready[fd]

    def run(self) -> None:
        rehearse()
        gc.collect()
        gc.freeze()
        while not self._keeper.stopped:
            happened = self._epoll.poll(self._spares.idle_timeout())
            for fd, events in happened:
                ready = self._ready.get(fd)
                if ready is not None:  # another one of this round may have closed it
                    ready(events)
            if not happened:
                self._spares.refill()
        os.unlink(self._path)
        self._spares.close()
        self._keeper.reap()

    def _accept(self, events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # socket.accept without the socket module
        except OSError as e:
            print(f"keeper: accept: {e}", file=sys.stderr)
            return
        sock = socket(fileno=fd)
        sock.settimeout(0)
        credentials = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED_SIZE)
        if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
            sock.close()
            return
        Connection(sock, self, self._keeper)

    def _in_child(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._nofile)

    def _reap(self, events: int) -> None:
        os.read(self._signals, 128)
        self._keeper.reap()
