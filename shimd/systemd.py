"""What a service owes systemd: signs of life (sd_notify(3)), and to take its listeners (sd_listen_fds(3))."""

from __future__ import annotations

import logging
import os
import socket

from shimd.errors import InvalidArgument
from shimd.records import Record
from shimd.typed import MutableMapping

_FIRST_FD = 3

_log = logging.getLogger(__name__)


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``, if there is one. The variable is removed, so that no child inherits it."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_usec = int(environ.pop("WATCHDOG_USEC", "0"))
        if environ.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self._watchdog_usec = 0

    @property
    def watchdog_interval(self) -> float:
        """Seconds between two ``WATCHDOG=1``, half of what systemd allows; 0 when none are wanted."""
        return self._watchdog_usec / 2e6 if self._address else 0.0

    def send(self, *assignments: str) -> None:
        """A service manager that is gone is no reason to stop serving: the failure is only logged."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto("\n".join(assignments).encode(), self._address)
            except OSError as error:
                _log.warning("telling the service manager %s: %s", assignments[0], error.strerror)


class Listener(Record):
    """``name`` is what the socket unit calls it (FileDescriptorName=), "" where nothing was said."""

    name: str
    socket: socket.socket


def listen_sockets(environ: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """The listeners that systemd passed to this very process; raises InvalidArgument for what is not one."""
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count:
        return []
    names += [""] * int(count)
    return [Listener(names[index], _listener(_FIRST_FD + index)) for index in range(int(count))]


def _listener(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)  # noqa: FBT003  positional-only
    sock = socket.socket(fileno=fd)
    if sock.family != socket.AF_UNIX or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise InvalidArgument(f"descriptor {fd} from LISTEN_FDS is not a listening Unix socket")
    return sock
