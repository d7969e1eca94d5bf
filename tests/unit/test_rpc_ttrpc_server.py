"""The ttrpc server, spoken to in bytes over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.empty_pb2 import Empty

from shimd.api.containerd import process_pb2, task_v2_pb2, task_v3_pb2
from shimd.api.containerd import task_v3_pb2 as api
from shimd.api.containerd import ttrpc_pb2 as wire
from shimd.api.v1 import runtime_pb2
from shimd.errors import FailedPrecondition, NotFound
from shimd.rpc import peer, status, ttrpc
from shimd.rpc.frames import DATA, HEADER, MAX_PAYLOAD, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE, FrameReader, pack
from shimd.rpc.service import Call, Service
from shimd.rpc.ttrpc import TtrpcServer
from tests.support.loops import on_both_loops

SECONDS = 20.0
TASK = "containerd.task.v3.Task"


class Tasks:
    """Answers by the id that it is asked for; what it has no method for is never called."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[str] = []
        self.finished: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return None

    async def connect(self, call: Call, request: api.ConnectRequest) -> api.ConnectResponse:
        self.calls.append(call)
        return api.ConnectResponse(version=request.id)

    async def state(self, call: Call, request: api.StateRequest) -> api.StateResponse:
        match request.id:
            case "missing":
                raise NotFound("container missing not found")
            case "bug":
                raise ZeroDivisionError
            case "broken":
                gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                gone.cancel()
                await gone
        raise FailedPrecondition("other")

    async def pids(self, call: Call, request: api.PidsRequest) -> api.PidsResponse:
        """As many bytes as the id says."""
        return api.PidsResponse(processes=[process_pb2.ProcessInfo(info=Any_(value=bytes(int(request.id))))])

    async def wait(self, call: Call, request: api.WaitRequest) -> api.WaitResponse:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        return api.WaitResponse(exit_status=3)

    async def kill(self, call: Call, request: api.KillRequest) -> Empty:
        async def to_the_end() -> None:
            self.begun.set()
            await self.go_on.wait()
            self.finished.append(request.id)

        await asyncio.shield(asyncio.create_task(to_the_end()))
        return Empty()


class Peer:
    """The client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._frames = FrameReader()
        self._received: list[Any] = []

    def send(self, stream: int, method: str, message: Any, *, service: str = TASK, **fields: Any) -> None:
        metadata = [wire.KeyValue(key=k, value=v) for k, v in fields.pop("metadata", ())]
        request = wire.Request(
            service=service, method=method, payload=message.SerializeToString(), metadata=metadata, **fields
        )
        self.writer.write(pack(stream, REQUEST, request.SerializeToString()))

    async def receive(self) -> tuple[int, wire.Response]:
        while not self._received:
            data = await asyncio.wait_for(self._reader.read(1 << 20), SECONDS)
            assert data, "the server closed the connection"
            self._received += self._frames.feed(data)
        frame = self._received.pop(0)
        assert (frame.kind, frame.flags) == (RESPONSE, 0)
        return frame.stream, wire.Response.FromString(frame.payload)

    async def answer(self) -> wire.Response:
        return (await self.receive())[1]

    async def refusal(self) -> tuple[int, int, str]:
        """(stream, code, message)"""
        stream, response = await self.receive()
        assert response.payload == b""
        return stream, response.status.code, response.status.message

    async def connect_works(self, stream: int) -> None:
        self.send(stream, "Connect", api.ConnectRequest(id=str(stream)))
        got, response = await self.receive()
        assert (got, response.status.code) == (stream, 0)
        assert api.ConnectResponse.FromString(response.payload).version == str(stream)

    async def closed(self) -> None:
        """Returns when the server has ended the connection."""
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(self._reader.read(1), SECONDS) == b""


class Rig:
    def __init__(self, path: Path) -> None:
        self.tasks = Tasks()
        services = [
            Service(descriptor, self.tasks)
            for descriptor in (
                task_v3_pb2.DESCRIPTOR.services_by_name["Task"],
                task_v2_pb2.DESCRIPTOR.services_by_name["Task"],
                runtime_pb2.DESCRIPTOR.services_by_name["Runtime"],
            )
        ]
        self.server = TtrpcServer(services, frozenset({os.getuid()}))
        self.path = str(path / "ttrpc")
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Rig:
        await self.server.listen(_listener(self.path), origin="main")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.server.stop(0)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def peer(self) -> Peer:
        reader, writer = await asyncio.open_unix_connection(self.path)
        self._writers.append(writer)
        return Peer(reader, writer)


def _listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    return listener


@contextlib.asynccontextmanager
async def one_peer(path: Path) -> AsyncIterator[tuple[Tasks, Peer]]:
    async with Rig(path) as rig:
        yield rig.tasks, await rig.peer()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ---- calls ----------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_call(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        client.send(1, "Connect", api.ConnectRequest(id="x"), metadata=[("containerd-namespace-ttrpc", "k8s.io")])
        assert (await client.receive())[0] == 1
        client.send(3, "Connect", api.ConnectRequest(id="x"), service="containerd.task.v2.Task")
        assert (await client.receive())[0] == 3
        assert tasks.calls == [
            Call("k8s.io", "containerd.task.v3.Task.Connect", "main"),
            Call("default", "containerd.task.v2.Task.Connect", "main"),
        ]


@on_both_loops
async def test_calls_side_by_side(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        for stream in range(1, 401, 2):
            client.send(stream, "Wait", api.WaitRequest(id=str(stream)))
        await client.connect_works(401)  # though all others wait
        tasks.go_on.set()
        answers = [await client.receive() for _ in range(200)]
        assert {stream for stream, _ in answers} == set(range(1, 401, 2))
        assert {api.WaitResponse.FromString(answer.payload).exit_status for _, answer in answers} == {3}


@pytest.mark.parametrize(
    ("metadata", "namespace"),
    [
        ([], "default"),
        ([("containerd-namespace", "a")], "a"),
        ([("containerd-namespace", "a"), ("containerd-namespace-ttrpc", "b")], "b"),
        ([("Containerd-Namespace-TTRPC", "first"), ("containerd-namespace-ttrpc", "second")], "first"),
        ([("traceparent", "00-1-2-01")], "default"),
    ],
)
@on_both_loops
async def test_namespace(tmp_path: Path, metadata: list[tuple[str, str]], namespace: str) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        client.send(1, "Connect", api.ConnectRequest(), metadata=metadata)
        await client.receive()
        assert tasks.calls[0].namespace == namespace


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container_id", "code", "text"),
    [
        ("missing", status.NOT_FOUND, "container missing not found"),
        ("other", status.FAILED_PRECONDITION, "other"),
        ("bug", status.INTERNAL, "ZeroDivisionError; see the daemon's log"),
        ("broken", status.CANCELLED, "cancelled"),
    ],
)
@on_both_loops
async def test_errors_of_the_service(tmp_path: Path, container_id: str, code: int, text: str) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.send(1, "State", api.StateRequest(id=container_id))
        stream, got, message = await client.refusal()
        assert (stream, got) == (1, code)
        assert text in message
        await client.connect_works(3)


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("containerd.task.v4.Task", "State"),
        (TASK, "Explode"),
        ("", ""),
        ("shimd.v1.Runtime", "Events"),
        ("shimd.v1.Runtime", "Attach"),
    ],
)
@on_both_loops
async def test_unknown_methods_and_streams(tmp_path: Path, service: str, method: str) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.send(1, method, api.StateRequest(), service=service)
        stream, code, message = await client.refusal()
        assert (stream, code) == (1, status.UNIMPLEMENTED)
        assert f"{service}/{method}" in message
        client.writer.write(pack(1, DATA, b"of a stream", REMOTE_CLOSED))
        await client.connect_works(3)


@on_both_loops
async def test_stream_ids(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        await client.connect_works(9)
        for stream in (2, 0, 9, 7, 1):
            client.send(stream, "Connect", api.ConnectRequest())
            assert (await client.refusal())[:2] == (stream, status.INVALID_ARGUMENT)
        await client.connect_works(0xFFFFFFFF)


@on_both_loops
async def test_malformed_requests(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        bad_payload = wire.Request(service=TASK, method="State", payload=b"\xff").SerializeToString()
        for stream, request in ((1, b"\xff\xff\xff"), (3, bad_payload)):
            client.writer.write(pack(stream, REQUEST, request))
            got, code, message = await client.refusal()
            assert (got, code) == (stream, status.INVALID_ARGUMENT)
            assert "malformed" in message
        client.send(5, "Connect", api.ConnectRequest(), metadata=[("containerd-namespace-ttrpc", "../etc")])
        assert (await client.refusal())[:2] == (5, status.INVALID_ARGUMENT)
        await client.connect_works(7)
        assert len(tasks.calls) == 1


@on_both_loops
async def test_data_that_belongs_to_no_stream(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.writer.write(pack(5, DATA, b"", NO_DATA))
        assert (await client.refusal())[:2] == (5, status.INVALID_ARGUMENT)


@on_both_loops
async def test_frames_of_unknown_types_are_ignored(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.writer.write(pack(1, 9, b"from the future") + pack(1, RESPONSE, b""))
        await client.connect_works(1)


@on_both_loops
async def test_request_that_is_too_long(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.writer.write(HEADER.pack(MAX_PAYLOAD + 1, 1, REQUEST, 0) + bytes(MAX_PAYLOAD + 1))
        stream, code, message = await client.refusal()
        assert (stream, code) == (1, status.RESOURCE_EXHAUSTED)
        assert str(MAX_PAYLOAD + 1) in message
        await client.connect_works(3)


@on_both_loops
async def test_longest_request_is_served(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        name = "x" * (MAX_PAYLOAD - 200)
        client.send(1, "Connect", api.ConnectRequest(id=name))
        assert api.ConnectResponse.FromString((await client.answer()).payload).version == name


@on_both_loops
async def test_answer_that_is_too_long(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (_, client):
        client.send(1, "Pids", api.PidsRequest(id=str(MAX_PAYLOAD)))
        assert (await client.refusal())[:2] == (1, status.RESOURCE_EXHAUSTED)
        await client.connect_works(3)


@on_both_loops
async def test_number_of_calls_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttrpc, "MAX_CALLS", 3)
    async with one_peer(tmp_path) as (tasks, client):
        for stream in (1, 3, 5, 7):
            client.send(stream, "Wait", api.WaitRequest())
        assert (await client.refusal())[:2] == (7, status.RESOURCE_EXHAUSTED)
        tasks.go_on.set()
        assert sorted([(await client.receive())[0] for _ in range(3)]) == [1, 3, 5]
        await client.connect_works(9)


@on_both_loops
async def test_strangers_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Credentials:
        size = peer._UCRED.size

        @staticmethod
        def unpack(_: bytes) -> tuple[int, ...]:
            return (4711, 65534, 65534)

    async with Rig(tmp_path) as rig:
        monkeypatch.setattr(peer, "_UCRED", Credentials)
        client = await rig.peer()
        client.send(1, "Connect", api.ConnectRequest())
        await client.closed()
        assert rig.tasks.calls == []
        assert rig.server.connections == set()


# ---- time-outs, ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nanoseconds", [50_000_000, 1, -5])
@on_both_loops
async def test_time_out_cancels_the_handler(tmp_path: Path, nanoseconds: int) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        client.send(1, "Wait", api.WaitRequest(id="w"), timeout_nano=nanoseconds)
        assert (await client.refusal())[:2] == (1, status.DEADLINE_EXCEEDED)
        assert tasks.cancelled in (["w"], [])  # not begun at all when the time was over before
        assert nanoseconds < 1000 or tasks.cancelled == ["w"]
        await client.connect_works(3)


@on_both_loops
async def test_time_that_suffices(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        client.send(1, "Wait", api.WaitRequest(), timeout_nano=2**63 - 1)
        client.send(3, "Wait", api.WaitRequest(), timeout_nano=10_000_000_000)
        await tasks.begun.wait()
        tasks.go_on.set()
        assert {(await client.receive())[1].status.code for _ in range(2)} == {0}


@pytest.mark.parametrize("how", ["close", "abort", "half"])
@on_both_loops
async def test_end_of_the_connection_cancels_its_calls(tmp_path: Path, how: str) -> None:
    async with Rig(tmp_path) as rig:
        client, other = await rig.peer(), await rig.peer()
        client.send(1, "Wait", api.WaitRequest(id="gone"))
        other.send(1, "Wait", api.WaitRequest(id="stays"))
        await rig.tasks.begun.wait()
        await other.connect_works(3)
        if how == "half":
            client.writer.write_eof()
        elif how == "close":
            client.writer.close()
        else:
            client.writer.transport.abort()
        async with asyncio.timeout(SECONDS):
            while rig.tasks.cancelled != ["gone"] or len(rig.server.connections) != 1:
                await asyncio.sleep(0.001)
        rig.tasks.go_on.set()
        assert (await other.receive())[0] == 1


@on_both_loops
async def test_what_must_finish_does_though_its_caller_is_gone(tmp_path: Path) -> None:
    async with one_peer(tmp_path) as (tasks, client):
        client.send(1, "Kill", api.KillRequest(id="k"))
        await tasks.begun.wait()
        client.writer.transport.abort()
        await turns()
        tasks.go_on.set()
        async with asyncio.timeout(SECONDS):
            while tasks.finished != ["k"]:
                await asyncio.sleep(0.001)


@on_both_loops
async def test_stop_lets_calls_end(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        client = await rig.peer()
        client.send(1, "Wait", api.WaitRequest())
        await rig.tasks.begun.wait()
        stopping = asyncio.create_task(rig.server.stop(SECONDS))
        await turns()
        with pytest.raises(OSError, match=r"refused|No such file"):
            await asyncio.open_unix_connection(rig.path)
        rig.tasks.go_on.set()
        assert (await client.receive())[0] == 1
        await stopping
        await client.closed()


@on_both_loops
async def test_stop_cancels_calls_that_do_not_end(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        client = await rig.peer()
        client.send(1, "Wait", api.WaitRequest(id="w"))
        await rig.tasks.begun.wait()
        await rig.server.stop(0.01)
        await client.closed()
        assert rig.tasks.cancelled == ["w"]


# ---- slow and broken clients ----------------------------------------------------------------------------------------


@on_both_loops
async def test_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    """It can neither fill our memory nor keep another client waiting."""
    async with Rig(tmp_path) as rig:
        slow, other = await rig.peer(), await rig.peer()
        stream = await _write_until_stuck(slow)
        await other.connect_works(1)
        # Once it reads, it gets all of its answers.
        for expected in range(1, stream, 2):
            assert (await slow.receive())[0] == expected


async def _write_until_stuck(client: Peer) -> int:
    """Ask, and read nothing; returns the stream that comes next."""
    for stream in range(1, 100_000, 2):
        client.send(stream, "Pids", api.PidsRequest(id="100000"), metadata=[("padding", "x" * 10_000)])
        try:
            await asyncio.wait_for(client.writer.drain(), 0.5)
        except TimeoutError:
            return stream + 2
    raise AssertionError("the server reads for ever")


@on_both_loops
async def test_rubbish(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        other = await rig.peer()
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\xff" * 100_000, os.urandom(5000)):
            client = await rig.peer()
            client.writer.write(rubbish)
            client.writer.write_eof()
            await _until_end(client.writer, client)
        await other.connect_works(1)


async def _until_end(writer: asyncio.StreamWriter, client: Peer) -> None:
    with contextlib.suppress(AssertionError, ConnectionError):
        while True:
            await client.receive()
