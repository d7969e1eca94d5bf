"""Output for clients of the daemon: kept while nobody is there, held back for the slowest, ended when it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from shimd.supervise.attach import KEPT_BYTES, STDERR, STDOUT, Attachment, AttachPoint, Chunk
from tests.support.loops import on_both_loops

SECONDS = 10.0


class Harness:
    """An attach point with the test in place of the process."""

    def __init__(self) -> None:
        self.out, self.err, self.stdin = -1, -1, -1
        self.ended = 0

    def open(self, *, followed: bool = False) -> AttachPoint:
        (out, self.out), (err, self.err), (self.stdin, stdin) = (os.pipe2(os.O_NONBLOCK) for _ in range(3))
        return AttachPoint({STDOUT: out, STDERR: err}, stdin, self._count, followed=followed)

    def _count(self) -> None:
        self.ended += 1

    def end_outputs(self) -> None:
        os.close(self.out)
        os.close(self.err)
        self.out = self.err = -1

    def close(self) -> None:
        for fd in (self.out, self.err, self.stdin):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def process() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def collect(client: Attachment) -> list[Chunk]:
    return [chunk async for chunk in client]


def text(chunks: list[Chunk], stream: int) -> bytes:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)


async def flood(fd: int) -> int:
    """Write until nothing more is taken; returns how much was."""
    written = idle = 0
    while idle < 50:
        try:
            written += os.write(fd, b"x" * 4096)
            idle = 0
        except BlockingIOError:
            idle += 1
            await asyncio.sleep(0)
    return written


@on_both_loops
async def test_output_comes_in_order_and_ends(process: Harness) -> None:
    point = process.open()
    client = point.attach()
    collecting = asyncio.ensure_future(collect(client))
    for number in range(10):
        os.write(process.out, b"%d" % number)
        os.write(process.err, b"%d" % (9 - number))
        await turns()
    process.end_outputs()
    chunks = await asyncio.wait_for(collecting, SECONDS)
    assert (text(chunks, STDOUT), text(chunks, STDERR)) == (b"0123456789", b"9876543210")
    assert process.ended == 1
    client.close()
    point.close()
    assert process.ended == 1


@on_both_loops
async def test_the_last_bytes_are_kept_for_the_next_client(process: Harness) -> None:
    point = process.open()
    total = 0
    for number in range(40):
        total += os.write(process.out, bytes([number]) * 4000)
        await turns(4)
    client = point.attach()
    kept = list(client.chunks)
    assert sum(len(chunk.data) for chunk in kept) == KEPT_BYTES
    assert kept[0].dropped == total - KEPT_BYTES
    assert kept[-1].data.endswith(bytes([39]) * 4000)
    assert not any(chunk.dropped for chunk in kept[1:])
    again = point.attach()
    assert not again.chunks
    for attachment in (client, again):
        attachment.close()
    point.close()


@on_both_loops
async def test_tiny_writes_do_not_take_much_memory(process: Harness) -> None:
    point = process.open()
    for _ in range(2000):
        os.write(process.out, b"o")
        os.write(process.err, b"e")
        await turns(2)
    await turns()
    client = point.attach()
    assert len(client.chunks) <= 256
    assert client.chunks[0].dropped + sum(len(chunk.data) for chunk in client.chunks) == 4000
    client.close()
    point.close()


@on_both_loops
async def test_small_writes_of_one_stream_are_put_together(process: Harness) -> None:
    point = process.open()
    for _ in range(3000):
        os.write(process.out, b"ab")
        await turns(2)
    await turns()
    client = point.attach()
    assert len(client.chunks) == 2
    assert text(list(client.chunks), STDOUT) == b"ab" * 3000
    client.close()
    point.close()


@on_both_loops
async def test_the_slowest_client_holds_the_process_back(process: Harness) -> None:
    point = process.open()
    slow, quick = point.attach(), point.attach()
    reading = asyncio.ensure_future(collect(quick))
    written = await flood(process.out)
    assert written < 1_000_000
    slow.close()  # a client that goes away frees the others
    process.end_outputs()
    chunks = await asyncio.wait_for(reading, SECONDS)
    assert len(text(chunks, STDOUT)) == written
    quick.close()
    point.close()


@on_both_loops
async def test_nothing_is_lost_for_a_slow_client(process: Harness) -> None:
    point = process.open()
    client = point.attach()
    written = await flood(process.out)
    process.end_outputs()
    chunks = await asyncio.wait_for(collect(client), SECONDS)
    assert len(text(chunks, STDOUT)) == written
    client.close()
    point.close()


@on_both_loops
async def test_expire_ends_what_children_hold_open(process: Harness) -> None:
    point = process.open()
    client = point.attach()
    os.write(process.out, b"last words")
    point.expire()
    chunks = await asyncio.wait_for(collect(client), SECONDS)
    assert text(chunks, STDOUT) == b"last words"
    assert process.ended == 1
    client.close()
    point.close()


@on_both_loops
async def test_expire_with_a_slow_client_delivers_all(process: Harness) -> None:
    point = process.open()
    client = point.attach()
    written = await flood(process.out)
    point.expire()
    point.expire()
    assert process.ended == 0
    chunks = await asyncio.wait_for(collect(client), SECONDS)
    assert len(text(chunks, STDOUT)) == written
    assert process.ended == 1
    client.close()
    point.close()


@on_both_loops
async def test_input_waits_for_the_process(process: Harness) -> None:
    point = process.open()
    data = os.urandom(300_000)
    writing = asyncio.ensure_future(point.write_stdin(data))
    received = b""
    while len(received) < len(data):
        await turns(2)
        try:
            received += os.read(process.stdin, 65536)
        except BlockingIOError:
            continue
    await asyncio.wait_for(writing, SECONDS)
    assert received == data
    point.close_stdin()
    assert os.read(process.stdin, 1) == b""
    await point.write_stdin(b"ignored")
    point.close()


@on_both_loops
async def test_two_clients_write_one_after_the_other(process: Harness) -> None:
    point = process.open()
    writers = [asyncio.ensure_future(point.write_stdin(letter * 100_000)) for letter in (b"a", b"b", b"c")]
    await turns()
    writers[0].cancel()
    received = b""
    while not received.endswith(b"c" * 100_000):
        await turns(2)
        try:
            received += os.read(process.stdin, 65536)
        except BlockingIOError:
            continue
    assert received.endswith(b"b" * 100_000 + b"c" * 100_000)
    assert received.count(b"a") < 100_000
    point.close()


@on_both_loops
async def test_closing_ends_those_who_wait(process: Harness) -> None:
    point = process.open()
    client = point.attach()
    writing = asyncio.ensure_future(point.write_stdin(bytes(1_000_000)))
    reading = asyncio.ensure_future(collect(client))
    await turns()
    point.close()
    await asyncio.wait_for(asyncio.gather(writing, reading), SECONDS)
    assert process.ended == 1
    late = point.attach()
    assert await asyncio.wait_for(collect(late), SECONDS) == []


@on_both_loops
async def test_process_that_closed_its_input(process: Harness) -> None:
    point = process.open()
    os.close(process.stdin)
    process.stdin = -1
    await asyncio.wait_for(point.write_stdin(bytes(1_000_000)), SECONDS)
    point.close()


@on_both_loops
async def test_nothing_is_dropped_for_a_client_that_is_about_to_attach(process: Harness) -> None:
    point = process.open(followed=True)
    written = await flood(process.out)
    await turns()
    client = point.attach()
    collecting = asyncio.ensure_future(collect(client))
    process.end_outputs()
    chunks = await asyncio.wait_for(collecting, SECONDS)
    assert sum(chunk.dropped for chunk in chunks) == 0
    assert len(text(chunks, STDOUT)) == written
    point.close()


@on_both_loops
async def test_output_of_a_dead_process_waits_for_the_client_that_follows_it(process: Harness) -> None:
    point = process.open(followed=True)
    os.write(process.out, b"last words")
    point.expire()  # others hold the outputs open
    await turns()
    assert process.ended == 0
    chunks = await asyncio.wait_for(collect(point.attach()), SECONDS)
    assert text(chunks, STDOUT) == b"last words"
    assert process.ended == 1
    point.close()
