"""What a caller hands to a new process, and what it is handed: descriptors, sockets for the terminal and the pidfd,
the file with the pid.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from shimd.cli.command import Call
from shimd.errors import InvalidArgument, RuntimeFailure

_FIRST = 3


class Handover:
    """Everything is checked and connected before there is a process. Closed by whoever made it."""

    def __init__(self, call: Call, *, terminal: bool, detach: bool, activation: bool) -> None:
        """Raises InvalidArgument, RuntimeFailure. ``activation``: sockets of systemd are passed on."""
        console = call.text("console-socket")
        _check_terminal(terminal=terminal, detach=detach, console=console)
        # Pid files are for others to read, whatever we make else.
        self._umask = os.umask(0o022)
        self._pid_file = os.path.abspath(call.text("pid-file")) if call.text("pid-file") else ""
        listening = _listening() if activation else 0
        self.fds = _inherited(_FIRST, listening) + _preserved(_FIRST + listening, call.number("preserve-fds"))
        self.env = (f"LISTEN_FDS={listening}", "LISTEN_PID=1") if listening else ()
        self._sockets: list[socket] = []
        self.console_socket = self._connect("console", console)
        self.pidfd_socket = self._connect("pidfd", call.text("pidfd-socket"))

    def __enter__(self) -> Handover:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self._sockets:
            connection.close()

    def write_pid(self, pid: int) -> None:
        """Readers never see the file empty: it gets its name when it is complete. Raises RuntimeFailure."""
        if not self._pid_file:
            return
        directory, name = os.path.split(self._pid_file)
        temporary = os.path.join(directory, f".{name}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_SYNC | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, 0o666 & ~self._umask)
                os.write(fd, str(pid).encode())
                os.rename(temporary, self._pid_file)
            except OSError:
                os.unlink(temporary)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise RuntimeFailure(f"write pid file {self._pid_file}: {error.strerror}") from error

    def _connect(self, what: str, path: str) -> int:
        """-1 without a path."""
        if not path:
            return -1
        connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._sockets.append(connection)
        try:
            connection.connect(path)
        except OSError as error:
            self.__exit__()
            raise InvalidArgument(f"connect to the {what} socket {path}: {error.strerror or error}") from error
        return connection.fileno()


def _check_terminal(*, terminal: bool, detach: bool, console: str) -> None:
    """In runc's words, for which engines look."""
    if detach and terminal and not console:
        raise InvalidArgument("cannot allocate tty if runc will detach without setting console socket")
    if console and not (detach and terminal):
        raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")


def _listening() -> int:
    """How many sockets systemd passes to this very process, sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return 0
    return int(count[:10])


def _inherited(first: int, count: int) -> tuple[int, ...]:
    for index in range(count):
        if not _came_from_caller(first + index):
            raise InvalidArgument(f"LISTEN_FDS={count}: descriptor {first + index} is not open")
    return tuple(range(first, first + count))


def _preserved(first: int, count: int) -> tuple[int, ...]:
    if count < 0:
        raise InvalidArgument(f"--preserve-fds {count}: a negative number of descriptors")
    for index in range(count):
        if not _came_from_caller(first + index):
            raise InvalidArgument(f"unable to stat preserved-fd {index} (of {count}): no such file or directory")
    return tuple(range(first, first + count))


def _came_from_caller(fd: int) -> bool:
    """What we have opened ourselves is close-on-exec, and what has come through execve(2) is not."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False
