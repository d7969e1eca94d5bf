"""A D-Bus connection for a few calls, one after the other, in one thread: to a bus, or straight to a service."""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from errno import ECONNRESET
from os import strerror

from jeepney.low_level import HeaderFields, Message, MessageType, Parser
from jeepney.wrappers import DBusAddress, new_method_call

from shimd.contexts import ExitStack
from shimd.errors import DeadlineExceeded, Unavailable
from shimd.records import Record
from shimd.typed import Any, Callable

CALL_TIMEOUT = 30.0  # seconds
_CHUNK = 65536

Body = tuple[Any, ...]


class CallFailed(Exception):
    """The service answered with an error: its name ("org.freedesktop.systemd1.NoSuchUnit") and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Target(Record):
    """An interface of an object of a service."""

    service: str
    path: str
    interface: str


_BUS = Target("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Connection:
    """A context manager. Calls raise Unavailable when the peer is gone, DeadlineExceeded when it does not answer."""

    def __init__(self, address: str, *, is_bus: bool) -> None:
        """``address`` is a path, or with a null byte in front an abstract name; ``is_bus``: the peer is a bus, which
        wants to be greeted. Raises OSError, Unavailable.
        """
        self._serial = 0
        self._parser = Parser()
        self._signals: deque[Message] = deque()
        with ExitStack() as undo:
            self._socket = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            # A socket with a time-out is non-blocking: connect(2) would fail when the peer's queue is full, not wait.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(CALL_TIMEOUT), 0))
            self._socket.connect(address)
            self._socket.settimeout(CALL_TIMEOUT)
            self._authenticate()
            if is_bus:
                self.call(_BUS, "Hello")
            undo.pop_all()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _authenticate(self) -> None:
        """By the credentials that the peer reads from the socket. Most clients tell their user id besides, which in a
        user namespace is not the one that the peer sees.

        All at once, as systemd's own clients do it: a message that its server reads together with BEGIN would stay
        unread until the next one. Signals may follow the answer, to DATA and to AUTH a line each.
        """
        self._socket.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        answer = b""
        while answer.count(b"\r\n") < 2 and not answer.startswith(b"REJECTED"):
            data = self._socket.recv(_CHUNK)
            if not data:
                raise ConnectionResetError(ECONNRESET, strerror(ECONNRESET))
            answer += data
        *_, verdict, rest = answer.split(b"\r\n", 2)
        if not verdict.startswith(b"OK"):
            raise Unavailable(f"authentication is refused: {answer.decode(errors='replace').strip()}")
        if rest:
            self._parser.add_data(rest)

    def add_match(self, rule: str) -> None:
        """Have the bus deliver signals."""
        self.call(_BUS, "AddMatch", "s", (rule,))

    def call(self, target: Target, method: str, signature: str = "", body: Body = ()) -> Body:
        """The answer's body. Raises CallFailed."""
        address = DBusAddress(target.path, target.service, target.interface)
        message = new_method_call(address, method, signature or None, body)
        self._serial += 1
        deadline = time.monotonic() + CALL_TIMEOUT
        try:
            self._socket.sendall(message.serialise(serial=self._serial))
        except TimeoutError as error:
            raise DeadlineExceeded(f"call {method}: no answer") from error
        except OSError as error:
            raise Unavailable(f"call {method}: {error.strerror}") from error
        while True:
            answer = self._receive(deadline, f"call {method}")
            if answer.header.fields.get(HeaderFields.reply_serial) == self._serial:
                return _unwrap(answer)
            self._signals.append(answer)

    def wait_signal(self, member: str, accept: Callable[[Body], bool], timeout: float) -> Body:
        """The body of the first signal that is accepted, those that came during calls included."""
        deadline = time.monotonic() + timeout
        while True:
            message = self._signals.popleft() if self._signals else self._receive(deadline, f"wait for {member}")
            if message.header.fields.get(HeaderFields.member) == member and accept(message.body):
                return tuple(message.body)

    def _receive(self, deadline: float, attempt: str) -> Message:
        while (message := self._parser.get_next_message()) is None:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{attempt}: no answer") from error
            except OSError as error:
                raise Unavailable(f"{attempt}: {error.strerror}") from error
            if not data:
                raise Unavailable(f"{attempt}: the connection was closed")
            self._parser.add_data(data)
        return message


def _unwrap(answer: Message) -> Body:
    if answer.header.message_type is not MessageType.error:
        return tuple(answer.body)
    text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
    raise CallFailed(answer.header.fields[HeaderFields.error_name], text)
