"""Network interfaces, as far as a new network namespace needs it."""

from __future__ import annotations

import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket
from fcntl import ioctl

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

_IFREQ = struct.Struct("=16sh22x")


def link_up(name: str) -> None:
    """In the caller's network namespace. By ioctl: any socket will do, and it takes a tenth of a netlink exchange."""
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        flags = _get_flags(sock.fileno(), name)
        ioctl(sock.fileno(), SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | IFF_UP))
    finally:
        sock.close()


def _get_flags(fd: int, name: str) -> int:
    reply = ioctl(fd, SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
    flags: int = _IFREQ.unpack(reply)[1]
    return flags


def link_is_up(name: str) -> bool:
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        return bool(_get_flags(sock.fileno(), name) & IFF_UP)
    finally:
        sock.close()
