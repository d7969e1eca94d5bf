"""The terminal of the caller while a process of a container has it: raw, and put right again whatever happens."""

from __future__ import annotations

import errno
import os
import termios

from shimd.errors import InvalidArgument
from shimd.linux import pty
from shimd.linux.signals import signal
from shimd.typed import Any

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


class HostTerminal:
    """Found among the standard streams, in case only some of them are redirected, or as the controlling terminal."""

    def __init__(self) -> None:
        """Raises InvalidArgument when there is none."""
        self._opened = -1
        self.fd = next((fd for fd in (2, 1, 0) if os.isatty(fd)), -1)
        if self.fd < 0:
            self.fd = self._opened = _open_controlling_terminal()
        self._saved: list[Any] = termios.tcgetattr(self.fd)
        self._is_raw = False

    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return pty.get_winsize(self.fd)

    def set_raw(self) -> None:
        """As cfmakeraw(3), except that it goes on making carriage returns, which the container's pty does not."""
        raw = termios.tcgetattr(self.fd)
        raw[_IFLAG] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
        self._is_raw = True
        self._set(raw)

    def restore(self) -> None:
        """Idempotent."""
        if self._is_raw:
            self._is_raw = False
            self._set(self._saved)

    def close(self) -> None:
        self.restore()
        if self._opened >= 0:
            os.close(self._opened)

    def _set(self, attributes: list[Any]) -> None:
        # In the background this would stop us; blocked, the signal lets the call pass, tcsetattr(3).
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, attributes)
        except termios.error as error:
            if error.args[0] != errno.EIO:  # hung up: there is nothing left to put right
                raise OSError(*error.args) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_controlling_terminal() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(
            f"open /dev/tty: {error.strerror}", hint="a terminal is wanted, and none is here"
        ) from error
