"""Relays between real pipes, FIFOs, files and terminals, on both event loops. The suite itself looks for leaks."""

from __future__ import annotations

import asyncio
import os
import pty as ptys
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from shimd.linux import pipe
from shimd.supervise import relay
from shimd.supervise.relay import CopyRelay, FileRelay, Relay, SpliceRelay
from tests.support.loops import on_both_loops

SECONDS = 10.0


class Ends(NamedTuple):
    """The test's side of a relay: it writes to ``feed`` and reads what arrives from ``drain``."""

    feed: int
    drain: int
    relay: Relay
    ended: asyncio.Event


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """Descriptors to close at the end; -1 for those that the test closed itself."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def through_pipes(opened: list[int], kind: type[Relay], *, size: int = 65536) -> Ends:
    (source, feed), (drain, target) = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    pipe.set_pipe_size(source, size)
    pipe.set_pipe_size(target, size)
    opened += [feed, drain]
    ended = asyncio.Event()
    return Ends(feed, drain, kind(source, target, ended.set), ended)


def give_up(opened: list[int], fd: int) -> None:
    opened[opened.index(fd)] = -1
    os.close(fd)


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await asyncio.wait_for(event.wait(), SECONDS)
    finally:
        loop.remove_reader(fd)


async def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        await readable(fd)
        data += os.read(fd, count - len(data))
    return data


async def read_to_end(fd: int) -> bytes:
    data = b""
    while True:
        await readable(fd)
        part = os.read(fd, 1 << 20)
        if not part:
            return data
        data += part


async def write_all(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    while data:
        event = asyncio.Event()
        loop.add_writer(fd, event.set)
        await asyncio.wait_for(event.wait(), SECONDS)
        loop.remove_writer(fd)
        data = data[os.write(fd, data) :]


async def turns(count: int = 20) -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


BOTH = pytest.mark.parametrize("kind", [SpliceRelay, CopyRelay])


@BOTH
@on_both_loops
async def test_bytes_arrive_in_order_and_the_end_too(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind)
    data = os.urandom(3_000_000)

    async def feed() -> None:
        await write_all(ends.feed, data)
        give_up(opened, ends.feed)

    received, _ = await asyncio.wait_for(asyncio.gather(read_to_end(ends.drain), feed()), SECONDS)
    assert received == data
    assert ends.ended.is_set()
    ends.relay.close()


@BOTH
@on_both_loops
async def test_small_writes_arrive_at_once(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind)
    for number in range(50):
        os.write(ends.feed, b"%d\n" % number)
        assert await read_exactly(ends.drain, len(b"%d\n" % number)) == b"%d\n" % number
    ends.relay.close()
    assert ends.ended.is_set()


@BOTH
@on_both_loops
async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind, size=4096)
    written = 0
    try:
        while True:
            written += os.write(ends.feed, b"x" * 1000)
            await turns()
    except BlockingIOError:
        pass
    assert written < 4096 * 2 + relay.CHUNK + 2000  # two pipes, and what a copying relay has in hand
    os.set_blocking(ends.feed, False)
    give_up(opened, ends.feed)
    assert await read_to_end(ends.drain) == b"x" * written


@BOTH
@on_both_loops
async def test_a_full_target_does_not_spin(
    opened: list[int], kind: type[Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = through_pipes(opened, kind, size=4096)
    os.write(ends.feed, b"x" * 4096)
    await turns()
    os.write(ends.feed, b"x" * 4096)
    await turns()
    calls = 0
    move = kind._move

    def counted(self: Relay) -> None:
        nonlocal calls
        calls += 1
        move(self)

    monkeypatch.setattr(kind, "_move", counted)
    await asyncio.sleep(0.05)
    assert calls <= 1
    ends.relay.close()


@BOTH
@on_both_loops
async def test_close_gives_up_what_is_under_way(opened: list[int], kind: type[Relay]) -> None:
    for filled in (0, 4096, 8192):
        ends = through_pipes(opened, kind, size=4096)
        for _ in range(filled // 4096):
            os.write(ends.feed, b"x" * 4096)
            await turns()
        ends.relay.close()
        ends.relay.close()
        assert ends.ended.is_set()
        with pytest.raises(BrokenPipeError):
            os.write(ends.feed, b"x")


@BOTH
@on_both_loops
async def test_reader_that_goes_away_for_good_ends_the_relay(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind)
    give_up(opened, ends.drain)
    os.write(ends.feed, b"x")
    await asyncio.wait_for(ends.ended.wait(), SECONDS)
    with pytest.raises(BrokenPipeError):
        os.write(ends.feed, b"x")


@BOTH
@on_both_loops
async def test_expire_does_not_wait_for_others_that_hold_the_pipe(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind)
    await turns()
    ends.relay.expire()
    await asyncio.wait_for(ends.ended.wait(), SECONDS)
    os.write(ends.feed, b"still heard")
    assert await read_exactly(ends.drain, 11) == b"still heard"
    ends.relay.close()


@BOTH
@on_both_loops
async def test_expire_waits_until_all_is_delivered(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind, size=4096)
    written = 0
    try:
        while True:
            written += os.write(ends.feed, b"x" * 500)
            await turns()
    except BlockingIOError:
        pass
    ends.relay.expire()
    ends.relay.expire()
    await turns()
    assert not ends.ended.is_set()
    assert await read_exactly(ends.drain, written) == b"x" * written
    await asyncio.wait_for(ends.ended.wait(), SECONDS)
    ends.relay.close()


@BOTH
@on_both_loops
async def test_expire_of_what_is_written_but_not_seen_yet(opened: list[int], kind: type[Relay]) -> None:
    ends = through_pipes(opened, kind)
    os.write(ends.feed, b"last words")
    ends.relay.expire()
    await asyncio.wait_for(ends.ended.wait(), SECONDS)
    assert os.read(ends.drain, 100) == b"last words"
    ends.relay.close()


@BOTH
@on_both_loops
async def test_fifo_without_a_reader_keeps_what_fits(opened: list[int], kind: type[Relay], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source, feed = os.pipe2(os.O_NONBLOCK)
    target = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    opened.append(feed)
    moving = kind(source, target, lambda: None)
    for text in (b"one", b"two"):
        os.write(feed, text)
        await turns()
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        assert await read_exactly(reader, 3) == text
        os.close(reader)
    moving.close()


@on_both_loops
async def test_file_target_is_appended_to(opened: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    source, feed = os.pipe2(os.O_NONBLOCK)
    opened.append(feed)
    ended = asyncio.Event()
    CopyRelay(source, os.open(log, os.O_WRONLY | os.O_APPEND), ended.set)
    os.write(feed, b"after\n")
    give_up(opened, feed)
    await asyncio.wait_for(ended.wait(), SECONDS)
    assert log.read_text() == "before\nafter\n"


@on_both_loops
async def test_full_disk_does_not_stop_the_program(opened: list[int]) -> None:
    source, feed = os.pipe2(os.O_NONBLOCK)
    opened.append(feed)
    ended = asyncio.Event()
    CopyRelay(source, os.open("/dev/full", os.O_WRONLY), ended.set)
    for _ in range(3):
        await write_all(feed, b"x" * 100_000)
    give_up(opened, feed)
    await asyncio.wait_for(ended.wait(), SECONDS)


@on_both_loops
async def test_file_source(opened: list[int], tmp_path: Path) -> None:
    data = os.urandom(400_000)
    (tmp_path / "input").write_bytes(data)
    drain, target = os.pipe2(os.O_NONBLOCK)
    opened.append(drain)
    ended = asyncio.Event()
    FileRelay(os.open(tmp_path / "input", os.O_RDONLY), target, ended.set)
    assert await read_to_end(drain) == data
    assert ended.is_set()
    drain, target = os.pipe2(os.O_NONBLOCK)
    opened.append(drain)
    given_up = FileRelay(os.open(tmp_path / "input", os.O_RDONLY), target, ended.set)
    await turns()
    given_up.close()
    drain, target = os.pipe2(os.O_NONBLOCK)
    os.close(drain)
    unread = asyncio.Event()
    FileRelay(os.open(tmp_path / "input", os.O_RDONLY), target, unread.set)
    await asyncio.wait_for(unread.wait(), SECONDS)


@on_both_loops
async def test_terminal_ends_when_nobody_has_it_open(opened: list[int]) -> None:
    master, slave = ptys.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    drain, target = os.pipe2(os.O_NONBLOCK)
    opened += [drain, slave]
    ended = asyncio.Event()
    CopyRelay(master, target, ended.set)
    os.write(slave, b"hello")
    assert await read_exactly(drain, 5) == b"hello"
    os.write(slave, b"bye")
    give_up(opened, slave)
    assert await read_to_end(drain) == b"bye"
    assert ended.is_set()


@on_both_loops
async def test_terminal_that_others_hold_expires(opened: list[int]) -> None:
    master, slave = ptys.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    drain, target = os.pipe2(os.O_NONBLOCK)
    opened += [drain, slave]
    ended = asyncio.Event()
    moving = CopyRelay(master, target, ended.set)
    os.write(slave, b"bye")
    moving.expire()
    await asyncio.wait_for(ended.wait(), SECONDS)
    assert os.read(drain, 10) == b"bye"
    moving.close()


@on_both_loops
async def test_busy_pipes_grow_but_only_so_many(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "GROWN_AT_ONCE", 1)
    sizes = []
    relays = []
    for _ in range(2):
        (source, feed), (drain, target) = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
        opened += [feed, drain]
        relays.append(SpliceRelay(source, target, lambda: None, may_grow=True))
        amount = relay.GROW_AFTER + 200_000
        await asyncio.gather(write_all(feed, bytes(amount)), read_exactly(drain, amount))
        sizes.append(pipe.get_pipe_size(feed))
    assert sizes == [relay.GROWN_SIZE, 65536]
    for moving in relays:
        moving.close()
    assert SpliceRelay._grown_now == 0
