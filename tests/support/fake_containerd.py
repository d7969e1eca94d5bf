"""A containerd as far as its event socket goes: a process that records what it is given, and misbehaves on demand.

    python -m tests.support.fake_containerd SOCKET RECORD BEHAVIOUR...

Each request that comes is treated by the next BEHAVIOUR, the last one for ever:

    ok             record it, answer
    refuse:CODE    answer with that status, record nothing
    hangup         close the connection, record nothing
    lost           record it, then close the connection without an answer
    silent         record nothing, never answer
    rubbish        answer with bytes that are no frame
    exit           end, record nothing

RECORD gets a line of JSON for each event: its namespace, topic, type, the fields of its message, and how many requests
were under way at that moment.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from types import TracebackType
from typing import Any

from google.protobuf.json_format import MessageToDict

from shimd.api.containerd import forward_pb2, task_events_pb2, ttrpc_pb2

ROOT = Path(__file__).parents[2]
HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2
SERVICE = "containerd.services.events.ttrpc.v1.Events"


class FakeContainerd:
    """The process; use as a context manager. ``start`` may be called again after ``stop``."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "containerd.sock.ttrpc")
        self.record = folder / "events"
        self.record.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FakeContainerd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *behaviours: str) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_containerd", self.socket, self.record, *(behaviours or ("ok",))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.read(1) == b"r"

    def stop(self) -> None:
        """By SIGKILL; the socket's file stays, as of the real one."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def await_exit(self) -> None:
        assert self._process is not None
        self._process.wait(20)
        self.stop()

    def events(self) -> list[dict[str, Any]]:
        """What was recorded so far."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]


def main(path: str, record: str, *behaviours: str) -> None:
    plan = chain(behaviours, repeat(behaviours[-1]))
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("r", end="", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):  # a daemon may be killed
            _serve(connection, record, plan)


def _serve(connection: socket.socket, record: str, plan: Iterator[str]) -> None:
    for stream, request in _requests(connection):
        behaviour, _, argument = next(plan).partition(":")
        if behaviour == "exit":
            raise SystemExit(0)
        if behaviour in ("ok", "lost"):
            _record(record, request, waiting=_more_waits(connection))
        if behaviour in ("hangup", "lost"):
            return
        if behaviour == "rubbish":
            connection.sendall(HEADER.pack(3, stream, RESPONSE, 0) + b"\xff\xff\xff")
        if behaviour in ("ok", "refuse"):
            status = ttrpc_pb2.Status(code=int(argument or 0), message="refused") if argument else None
            answer = ttrpc_pb2.Response(status=status).SerializeToString()
            connection.sendall(HEADER.pack(len(answer), stream, RESPONSE, 0) + answer)


def _requests(connection: socket.socket) -> Iterator[tuple[int, ttrpc_pb2.Request]]:
    while header := connection.recv(HEADER.size, socket.MSG_WAITALL):
        length, stream, kind, _ = HEADER.unpack(header)
        assert kind == REQUEST
        request = ttrpc_pb2.Request.FromString(connection.recv(length, socket.MSG_WAITALL))
        assert (request.service, request.method) == (SERVICE, "Forward")
        yield stream, request


def _more_waits(connection: socket.socket) -> bool:
    """Whether another request was sent before this one was answered."""
    time.sleep(0.001)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def _record(path: str, request: ttrpc_pb2.Request, *, waiting: bool) -> None:
    envelope = forward_pb2.ForwardRequest.FromString(request.payload).envelope
    message = getattr(task_events_pb2, envelope.event.type_url.rpartition(".")[2]).FromString(envelope.event.value)
    entry = {
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "type": envelope.event.type_url,
        "timestamp": envelope.timestamp.ToNanoseconds(),
        "message": MessageToDict(message, preserving_proto_field_name=True),
        "waiting": waiting,
    }
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
