"""Signals that shimrun gets while a process is in the foreground are meant for that process.

Facts: Python runs a handler some time after the signal, once for any number of the same kind; the C half of its
handling writes a byte for each to the wake-up descriptor at once. So the pipe behind that is the queue, and a handler
only says that there is something in it. Handlers run inside system calls that block, too (PEP 475), hence a slow reader
of our output delays no signal.
"""

from __future__ import annotations

import os

from shimd.contexts import contextmanager, suppress
from shimd.linux.signals import signal
from shimd.typed import Callable, Iterator

_FAULTS = (signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)  # ours: handling them would raise them again
_OURS = (
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGTTIN,  # of the kernel, when we are in the background; forwarded, the read would be tried for ever
    signal.SIGTTOU,
    signal.SIGPIPE,  # of the kernel, when nobody reads our output; write(2) tells the same
)
_BY_LIBC = (32, 33)
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Enough(BaseException):
    """Somebody wants us to end, when there is no process any more that the signal would be for."""


class SignalProxy:
    """Takes all signals from its making on; what comes before ``forward_to`` is delivered then."""

    def __init__(self) -> None:
        self._pidfd = -1
        self._resize: Callable[[], None] = _nothing
        self._process_is_dead = False
        self.reaped: dict[int, int] = {}
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        left_alone = (*_FAULTS, *_OURS, *_BY_LIBC)
        self._caught = [number for number in range(1, signal.NSIG) if number not in left_alone]
        for number in self._caught:
            signal.signal(number, self._handle)

    def forward_to(self, pidfd: int, resize: Callable[[], None]) -> None:
        """From now on children are reaped here, too: their statuses are in ``reaped``, by pid."""
        self._pidfd = pidfd
        self._resize = resize
        self._handle()

    @contextmanager
    def process_is_dead(self) -> Iterator[None]:
        """Signals that ask for an end raise Enough in the block, or at its borders."""
        self._process_is_dead = True
        try:
            yield
        finally:
            self._process_is_dead = False

    def close(self) -> None:
        """Signals have their defaults again."""
        for number in self._caught:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)

    def _handle(self, *_: object) -> None:
        if self._pidfd < 0:
            return
        while numbers := self._queued():
            for number in numbers:
                self._dispatch(number)

    def _queued(self) -> bytes:
        try:
            return os.read(self._read_end, 4096)
        except BlockingIOError:
            return b""

    def _dispatch(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGWINCH:
            self._resize()
        elif number != signal.SIGURG:
            if self._process_is_dead and number in _ENDING:
                raise Enough
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        """A subreaper gets children that it never made."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.reaped[pid] = status


def _nothing() -> None:
    pass
