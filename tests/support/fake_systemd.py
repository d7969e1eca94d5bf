"""A systemd that only answers: D-Bus on a socket of the test's own, as a bus or as the private socket does it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jeepney.low_level import HeaderFields, Message, MessageType, Parser
from jeepney.wrappers import DBusAddress, new_error, new_method_return, new_signal

MANAGER = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
JOB = "/org/freedesktop/systemd1/job/7"
SIGNATURES = {"Hello": "s", "Get": "v", "StartTransientUnit": "o", "StopUnit": "o"}
ANSWERS: dict[str, tuple[Any, ...]] = {
    "Hello": (":1.1",),
    "Get": (("s", "252.1-test"),),
    "StartTransientUnit": (JOB,),
    "StopUnit": (JOB,),
}


class FakeSystemd:
    """``calls`` are (method, body) of all that were made. ``errors`` are the names of those that the next calls of a
    method get, in order, "" for none; ``jobs`` the results of the next jobs, "" for one that never ends, then "done".
    """

    def __init__(self, path: Path, *, greeting: bytes = b"DATA\r\nOK 1234\r\n") -> None:
        self.path = path
        self.greeting = greeting
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: dict[str, list[str]] = {}
        self.jobs: list[str] = []
        self.answers = dict(ANSWERS)
        self.signal_first = False
        self.hang_up_on = ""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeSystemd:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._listener.accept()[0] as connection, contextlib.suppress(ConnectionError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        hello = b""
        while not hello.endswith(b"BEGIN\r\n"):
            hello += connection.recv(4096)
        assert hello == b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
        # What systemd sends unasked may follow at once.
        unasked = new_signal(MANAGER, "UnitNew", "so", ("x.scope", "/x")).serialise(serial=1)
        connection.sendall(self.greeting + (unasked if b"OK" in self.greeting else b""))
        for call in _messages(connection):
            method = call.header.fields[HeaderFields.member]
            self.calls.append((method, call.body))
            if method == self.hang_up_on:
                return
            self._answer(connection.sendall, call, method)

    def _answer(self, send: Callable[[bytes], None], call: Message, method: str) -> None:
        error = self.errors[method].pop(0) if self.errors.get(method) else ""
        if error:
            send(new_error(call, error, "s", ("it is so",)).serialise(serial=2))
            return
        answer = new_method_return(call, SIGNATURES.get(method), self.answers.get(method, ())).serialise(serial=2)
        end = b""
        if method in ("StartTransientUnit", "StopUnit"):
            result = self.jobs.pop(0) if self.jobs else "done"
            other = new_signal(MANAGER, "JobRemoved", "uoss", (6, JOB.replace("7", "6"), "other.scope", "failed"))
            ours = new_signal(MANAGER, "JobRemoved", "uoss", (7, JOB, str(call.body[0]), result))
            end = other.serialise(serial=3) + (ours.serialise(serial=4) if result else b"")
        send(end + answer if self.signal_first else answer + end)


def _messages(connection: socket.socket) -> Iterator[Message]:
    parser = Parser()
    while data := connection.recv(65536):
        for message in parser.feed(data):
            assert message.header.message_type is MessageType.method_call
            yield message
