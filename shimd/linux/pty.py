"""Pseudo terminals by descriptor: no path of a devpts that somebody else controls is opened, ioctl_tty(2)."""

from __future__ import annotations

import os
import struct
from fcntl import ioctl

TIOCSCTTY = 0x540E
TIOCGWINSZ = 0x5413
TIOCSWINSZ = 0x5414
TIOCGPTN = 0x80045430
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441

_WINSIZE = struct.Struct("=HHHH")


def unlockpt(master: int) -> None:
    ioctl(master, TIOCSPTLCK, struct.pack("=i", 0))


def ptsname_index(master: int) -> int:
    """N of /dev/pts/N."""
    index: int = struct.unpack("=i", ioctl(master, TIOCGPTN, struct.pack("=i", 0)))[0]
    return index


def open_peer(master: int, *, flags: int = os.O_RDWR | os.O_NOCTTY) -> int:
    """The slave, whatever is mounted where; close-on-exec. EIO while the pty is locked."""
    return ioctl(master, TIOCGPTPEER, flags | os.O_CLOEXEC)


def set_winsize(fd: int, rows: int, columns: int) -> None:
    """The foreground process group gets SIGWINCH when it changes."""
    ioctl(fd, TIOCSWINSZ, _WINSIZE.pack(rows, columns, 0, 0))


def get_winsize(fd: int) -> tuple[int, int]:
    """(rows, columns)."""
    rows, columns, _, _ = _WINSIZE.unpack(ioctl(fd, TIOCGWINSZ, bytes(_WINSIZE.size)))
    return rows, columns


def set_controlling_terminal(fd: int) -> None:
    """The caller is a session leader without a terminal."""
    ioctl(fd, TIOCSCTTY, 0)


def disable_onlcr(fd: int) -> None:
    """Leave newlines as they are: who shows the output adds the carriage returns."""
    import termios  # only for those who show a terminal; every init would have to wait for it

    attributes = termios.tcgetattr(fd)
    attributes[1] &= ~termios.ONLCR
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
