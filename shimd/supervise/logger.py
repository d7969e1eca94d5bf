"""Logging programs: the output of a process goes to a program of the client's choice (containerd's ``binary://``).

    binary:///path/to/program?key=value         runs ``program key value``
    binary-v2:///path/to/program?key=value      the same, with a stricter word about readiness

The program has $CONTAINER_ID (an exec's id, for that) and $CONTAINER_NAMESPACE, nothing else, as environment, and as
descriptors 3 and 4 the reading ends of stdout and stderr. It closes 5 when it is ready; in version 2 it writes a byte
there before, so that a crash is not taken for readiness.

The pipes connect the process and the program directly: no byte passes through the daemon, and both go on without it.
The end of the process is the end of the program's input. Whoever deletes the process gives it time to finish, then
sends SIGTERM, and SIGKILL 12 seconds later, as containerd's shims do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import signal
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

from shimd.errors import InvalidArgument, NotFound, RuntimeFailure
from shimd.records import Record

SCHEMES = ("binary", "binary-v2")

_READY_SECONDS = 10.0
_TERM_SECONDS = 12.0

_FIRST_FREE = 10  # above the descriptors that the program has
# Ignored signals survive execve: those that Python ignores, and those that the daemon's starter did.
_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

_log = logging.getLogger(__name__)


class Whose(Record):
    """Whose output it is, for the program."""

    namespace: str = ""
    id: str = ""


NOBODYS = Whose()


class Started(Record):
    """A program that is ready, and the writing ends of its pipes."""

    logger: Logger
    stdout: int
    stderr: int


class Logger:
    """A running program, our child. Ends with ``discard``, or is handed to the event loop by ``watch``."""

    __slots__ = ("_loop", "_path", "_pid", "_pidfd", "_timer")

    def __init__(self, path: str, pid: int) -> None:
        self._path = path
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def fileno(self) -> int:
        return self._pidfd

    def discard(self) -> None:
        """Nobody will use it. Blocks for a moment. Idempotent."""
        self._signal(signal.SIGKILL)
        self._reap()

    def watch(self, ended: Callable[[], None]) -> None:
        """Call ``ended`` when the program has ended."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._ended, ended)

    def terminate(self) -> None:
        """Ask it to end; it is reaped when it does. Idempotent."""
        if self._pidfd >= 0 and self._timer is None and self._loop is not None:
            self._signal(signal.SIGTERM)
            self._timer = self._loop.call_later(_TERM_SECONDS, self._signal, signal.SIGKILL)

    def leave(self) -> None:
        """It goes on without us. Idempotent."""
        if self._pidfd >= 0 and self._timer is None:
            if self._loop is not None:
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self, ended: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._pidfd)
        if self._timer is not None:
            self._timer.cancel()
        status = self._reap()
        if status and self._timer is None:
            _log.warning("logging program %s ended with %d", self._path, os.waitstatus_to_exitcode(status))
        ended()

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> int:
        """The wait status."""
        if self._pidfd < 0:
            return 0
        os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self._pid, 0)[1]
        return 0


def start_logger(uri: str, whose: Whose) -> Started:
    """Returns when the program is ready. Raises InvalidArgument, NotFound, RuntimeFailure, OSError."""
    path, arguments = _command(uri)
    with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
        stdout, stdout_w = _pipe(theirs, failed)
        stderr, stderr_w = _pipe(theirs, failed)
        ready, ready_w = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, ready)
        with contextlib.ExitStack() as spawned:
            spawned.callback(os.close, ready_w)
            try:
                logger = Logger(path, _spawn([path, *arguments], whose, (stdout, stderr, ready_w)))
            except FileNotFoundError as error:
                raise NotFound(f"stdio {uri}: there is no such program") from error
        failed.callback(logger.discard)
        _await_ready(logger, path, ready, byte_wanted=uri.startswith("binary-v2:"))
        failed.pop_all()
    return Started(logger, stdout_w, stderr_w)


def _command(uri: str) -> tuple[str, list[str]]:
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/"):
        raise InvalidArgument(f"stdio {uri}: a logging program needs an absolute path")
    arguments = [
        word for key, values in parse_qs(parts.query, keep_blank_values=True).items() for word in (key, values[0])
    ]
    if any("\0" in word for word in (path, *arguments)):
        raise InvalidArgument(f"stdio {uri}: null byte")
    return path, arguments


def _pipe(theirs: contextlib.ExitStack, failed: contextlib.ExitStack) -> tuple[int, int]:
    """(reading end, which ``theirs`` closes, writing end)"""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    theirs.callback(os.close, reader)
    failed.callback(os.close, writer)
    return reader, writer


def _spawn(argv: list[str], whose: Whose, fds: tuple[int, int, int]) -> int:
    """The pid. ``fds`` become 3, 4 and 5; a session of its own keeps signals from our terminal away."""
    with contextlib.ExitStack() as stack:
        # dup2 onto one of the three must not hit one that is still needed.
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for fd in fds]
        for copy in copies:
            stack.callback(os.close, copy)
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
        theirs = [(os.POSIX_SPAWN_DUP2, copy, fd) for fd, copy in enumerate(copies, 3)]
        return os.posix_spawn(
            argv[0],
            argv,
            {"CONTAINER_ID": whose.id, "CONTAINER_NAMESPACE": whose.namespace},
            file_actions=[*null, *theirs],
            setsid=True,
            setsigmask=(),
            setsigdef=_RESET,
        )


def _await_ready(logger: Logger, path: str, ready: int, *, byte_wanted: bool) -> None:
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    if not poller.poll(_READY_SECONDS * 1000):
        raise RuntimeFailure(f"logging program {path} is not ready after {_READY_SECONDS:g} s")
    byte = os.read(ready, 1)
    if not byte and (byte_wanted or _has_ended(logger)):
        raise RuntimeFailure(f"logging program {path} ended before it was ready")


def _has_ended(logger: Logger) -> bool:
    poller = select.poll()
    poller.register(logger.fileno(), select.POLLIN)
    return bool(poller.poll(0))
