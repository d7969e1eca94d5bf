"""The ttrpc client, against our server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shimd.api.containerd import ttrpc_pb2 as wire
from shimd.rpc import status
from shimd.rpc.frames import HEADER, MAX_PAYLOAD, RESPONSE, Frame, FrameReader, pack
from shimd.rpc.status import StatusError
from shimd.rpc.ttrpc_client import TtrpcClient, socket_path
from tests.support.loops import on_both_loops

SECONDS = 20.0

Answer = Callable[[Frame, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[TtrpcClient]:
    """A client of a server that handles each frame with ``answer``."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        frames = FrameReader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for frame in frames.feed(data):
                    await answer(frame, writer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path / "ttrpc")
    client = await TtrpcClient.connect(f"unix://{path}/ttrpc")
    yield client
    client.close()
    server.close()
    await server.wait_closed()
    await asyncio.gather(*filter(None, serving))


def ok(stream: int, payload: bytes) -> bytes:
    return pack(stream, RESPONSE, wire.Response(payload=payload).SerializeToString())


def failure(error: pytest.ExceptionInfo[StatusError]) -> tuple[int, str]:
    return error.value.code, str(error.value)


@on_both_loops
async def test_what_is_sent(tmp_path: Path) -> None:
    seen: list[tuple[int, wire.Request]] = []

    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        seen.append((frame.stream, wire.Request.FromString(frame.payload)))
        writer.write(ok(frame.stream, b"fine"))

    async with serving(tmp_path, answer) as client:
        assert await client.call("a.B", "C", b"in", timeout=2.5, metadata={"k": "v"}) == b"fine"
        assert await client.call("a.B", "D", b"") == b"fine"
    first = wire.Request(service="a.B", method="C", payload=b"in", timeout_nano=2_500_000_000)
    first.metadata.add(key="k", value="v")
    assert seen == [(1, first), (3, wire.Request(service="a.B", method="D"))]


@on_both_loops
async def test_answers_in_any_order(tmp_path: Path) -> None:
    waiting: list[int] = []

    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        waiting.append(frame.stream)
        if len(waiting) == 50:
            writer.write(ok(99999, b"nobody's") + b"".join(ok(s, b"%d" % s) for s in reversed(waiting)))

    async with serving(tmp_path, answer) as client:
        answers = await asyncio.gather(*(client.call("s", "m", b"") for _ in range(50)))
        assert answers == [b"%d" % stream for stream in range(1, 100, 2)]


@on_both_loops
async def test_refusal(tmp_path: Path) -> None:
    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        refusal = wire.Response(status=wire.Status(code=status.NOT_FOUND, message="no such thing"))
        writer.write(pack(frame.stream, RESPONSE, refusal.SerializeToString()))

    async with serving(tmp_path, answer) as client:
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", b"")
        assert failure(error) == (status.NOT_FOUND, "no such thing")
        assert not client.is_closed


@on_both_loops
async def test_time_out_and_a_late_answer(tmp_path: Path) -> None:
    late: list[int] = []

    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        late.append(frame.stream)
        if len(late) == 2:
            writer.write(ok(late[0], b"late") + ok(late[1], b"second"))

    async with serving(tmp_path, answer) as client:
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", b"", timeout=0.02)
        assert failure(error) == (status.DEADLINE_EXCEEDED, "s/m took longer than 0.02 s")
        assert await client.call("s", "m", b"", timeout=SECONDS) == b"second"


@on_both_loops
async def test_server_that_hangs_up(tmp_path: Path) -> None:
    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        if frame.stream == 5:
            writer.close()

    async with serving(tmp_path, answer) as client:
        results = await asyncio.gather(*(client.call("s", "m", b"") for _ in range(3)), return_exceptions=True)
        assert [r.code for r in results if isinstance(r, StatusError)] == [status.UNAVAILABLE] * 3
        assert client.is_closed
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", b"")
        assert failure(error) == (status.UNAVAILABLE, "the connection is closed")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pack(1, RESPONSE, b"\xff\xff"), status.INTERNAL),
        (HEADER.pack(MAX_PAYLOAD + 1, 1, RESPONSE, 0) + bytes(MAX_PAYLOAD + 1), status.RESOURCE_EXHAUSTED),
    ],
)
@on_both_loops
async def test_answers_that_cannot_be_read(tmp_path: Path, data: bytes, code: int) -> None:
    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        writer.write(data if frame.stream == 1 else ok(frame.stream, b"good"))

    async with serving(tmp_path, answer) as client:
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", b"")
        assert error.value.code == code
        assert await client.call("s", "m", b"") == b"good"


@on_both_loops
async def test_request_that_is_too_long_is_not_sent(tmp_path: Path) -> None:
    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(frame.stream, b""))

    async with serving(tmp_path, answer) as client:
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", bytes(MAX_PAYLOAD))
        assert error.value.code == status.RESOURCE_EXHAUSTED
        assert await client.call("s", "m", b"") == b""


@on_both_loops
async def test_stream_ids_run_out(tmp_path: Path) -> None:
    async def answer(frame: Frame, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(frame.stream, b"last"))

    async with serving(tmp_path, answer) as client:
        client._next_stream = 0xFFFFFFFF
        assert await client.call("s", "m", b"") == b"last"
        with pytest.raises(StatusError) as error:
            await client.call("s", "m", b"")
        assert error.value.code == status.UNAVAILABLE
        assert client.is_closed


@on_both_loops
async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as error:
        await TtrpcClient.connect(str(tmp_path / "nothing"))
    assert failure(error) == (status.UNAVAILABLE, f"connect to {tmp_path}/nothing: no such file or directory")


def test_addresses() -> None:
    assert socket_path("/run/containerd/containerd.sock.ttrpc") == "/run/containerd/containerd.sock.ttrpc"
    assert socket_path("unix:///run/c.sock") == "/run/c.sock"
