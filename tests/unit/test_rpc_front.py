from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shimd.rpc.front import Front


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[str]:
    """The path of a front before a server that sends everything back, in its own time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    inner = str(tmp_path / "inner")
    server = await asyncio.start_unix_server(serve, inner)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "public"))
    listener.listen()
    running = Front(listener, inner, frozenset())
    running.start()
    yield str(tmp_path / "public")
    running.close()
    running.close()
    server.close()
    await server.wait_closed()


async def test_bytes_go_both_ways(front: str) -> None:
    reader, writer = await asyncio.open_unix_connection(front)
    for _ in range(3):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


async def test_much_data_is_relayed_whole_and_half_closed(front: str) -> None:
    reader, writer = await asyncio.open_unix_connection(front)
    data = os.urandom(1 << 20) * 8
    writer.write(data)
    writer.write_eof()
    assert await reader.read(-1) == data
    writer.close()
    await writer.wait_closed()


async def test_many_connections_at_once(front: str) -> None:
    async def one(number: int) -> bytes:
        reader, writer = await asyncio.open_unix_connection(front)
        writer.write(b"%d" % number)
        writer.write_eof()
        answer = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        return answer

    assert await asyncio.gather(*map(one, range(50))) == [b"%d" % number for number in range(50)]


async def test_client_that_goes_away(front: str) -> None:
    reader, writer = await asyncio.open_unix_connection(front)
    writer.write(b"x")
    await reader.readexactly(1)
    writer.transport.abort()
    reader, writer = await asyncio.open_unix_connection(front)
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    writer.close()
    await writer.wait_closed()


class StrangersOnly(socket.socket):
    """A listener whose peers the kernel says are somebody else."""

    def accept(self) -> tuple[socket.socket, object]:
        peer, address = super().accept()
        return Stranger(fileno=peer.detach()), address


class Stranger(socket.socket):
    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:  # type: ignore[override]
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 4711, 65534, 65534)


async def test_stranger_is_turned_away(tmp_path: Path) -> None:
    listener = StrangersOnly(socket.AF_UNIX)
    listener.bind(str(tmp_path / "public"))
    listener.listen()
    running = Front(listener, str(tmp_path / "never"), frozenset({1000}))
    running.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "public"))
    assert await reader.read(1) == b""
    writer.close()
    await writer.wait_closed()
    running.close()


async def test_no_server_behind(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "public"))
    listener.listen()
    running = Front(listener, str(tmp_path / "nowhere"), frozenset())
    running.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "public"))
    assert await reader.read(1) == b""
    writer.close()
    await writer.wait_closed()
    running.close()
