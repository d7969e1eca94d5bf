"""When the end of a process may be told: the test is its client (the FIFOs' reader) and the process (pipes)."""

from __future__ import annotations

import asyncio
import os
import pty as ptys
import resource
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shimd.linux import inotify
from shimd.supervise import readers as module
from shimd.supervise.readers import Readers
from shimd.supervise.stdio import open_stdio
from shimd.supervise.streams import Streams
from tests.support.loops import on_both_loops

SECONDS = 10.0


class Client:
    """Its FIFOs, and the streams of one process."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.fds: list[int] = []
        names = [str(folder / name) for name in (("out", "out") if shared else ("out", "err"))]
        for name in set(names):
            os.mkfifo(name)
        self.readers = [self._own(os.open(name, os.O_RDONLY | os.O_NONBLOCK)) for name in names]
        opened = open_stdio("", *names, terminal=False)
        self.stdout, self.stderr = (self._own(os.dup(fd)) for fd in opened.ends[1:])
        self.streams = Streams(opened, -1)
        self.taken = Readers()
        self.over = asyncio.Event()

    def _own(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def end_process(self) -> None:
        for fd in (self.stdout, self.stderr):
            self.fds.remove(fd)
            os.close(fd)

    def hold(self) -> None:
        self.streams.when_read(self.taken, self.over.set)

    async def is_over(self) -> None:
        await asyncio.wait_for(self.over.wait(), SECONDS)

    def close(self) -> None:
        self.streams.close()
        self.taken.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(**kind: bool) -> Client:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Client(folder, **kind))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given up in these tests."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 2 * SECONDS)
    monkeypatch.setattr(module, "HOLD_SECONDS", 2 * SECONDS)


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        try:
            chunk = os.read(fd, 4096)
        except BlockingIOError:
            return data
        if not chunk:
            return data
        data += chunk


async def turns(count: int = 10) -> None:
    """Of the loop, for all that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


@on_both_loops
async def test_without_output_it_is_told_at_once(client: Callable[..., Client], patient: None) -> None:
    one = client()
    one.end_process()
    await one.streams.drained()
    one.hold()
    assert one.over.is_set()


@on_both_loops
async def test_it_waits_for_the_end_of_what_was_written(client: Callable[..., Client], patient: None) -> None:
    one = client()
    one.end_process()
    one.hold()  # the loop has not seen the ends yet
    await one.is_over()


@on_both_loops
@pytest.mark.parametrize("seen", [True, False], ids=["ends-seen-before", "ends-seen-after"])
async def test_it_waits_for_each_reader(client: Callable[..., Client], patient: None, *, seen: bool) -> None:
    one = client()
    os.write(one.stdout, b"out")
    os.write(one.stderr, b"error")
    one.end_process()
    if seen:
        await one.streams.drained()
    one.hold()
    await turns()
    assert read_all(one.readers[0]) == b"out"
    await turns()
    assert os.read(one.readers[1], 2) == b"er"
    await turns()
    assert not one.over.is_set()
    assert read_all(one.readers[1]) == b"ror"
    await one.is_over()
    assert [os.read(fd, 1) for fd in one.readers] == [b"", b""]  # the end, which was not held back


@on_both_loops
async def test_it_waits_for_what_is_still_in_the_pipe(client: Callable[..., Client], patient: None) -> None:
    one = client()
    os.set_blocking(one.stdout, False)
    written = 0
    for _ in range(200):
        try:
            written += os.write(one.stdout, b"x" * 4096)
        except BlockingIOError:
            await asyncio.sleep(0)
    assert written > 64 * 1024
    one.end_process()
    one.hold()
    received = 0
    while received < written:
        assert not one.over.is_set()
        received += len(read_all(one.readers[0]))
        await asyncio.sleep(0)
    await one.is_over()


@on_both_loops
async def test_a_fifo_for_both_streams(client: Callable[..., Client], patient: None) -> None:
    one = client(shared=True)
    os.write(one.stdout, b"out")
    os.write(one.stderr, b"err")
    one.end_process()
    one.hold()
    await turns()
    assert not one.over.is_set()
    assert sorted(read_all(one.readers[0])) == sorted(b"outerr")
    await one.is_over()


@on_both_loops
async def test_each_of_several_waits_for_its_own(client: Callable[..., Client], patient: None) -> None:
    several = [client() for _ in range(3)]
    for one in several:
        one.taken.close()
        one.taken = several[0].taken
        os.write(one.stdout, b"out")
        one.end_process()
        one.hold()
    await turns()
    for one in several:
        assert not one.over.is_set()
        read_all(one.readers[0])
        await one.is_over()


@on_both_loops
async def test_what_others_hold_open_does_not_keep_it(client: Callable[..., Client], patient: None) -> None:
    one = client()
    os.write(one.stdout, b"out")
    one.hold()
    await turns()
    assert not one.over.is_set()
    read_all(one.readers[0])
    await one.is_over()
    os.write(one.stdout, b"from a child")  # is not lost, either
    await turns()
    assert read_all(one.readers[0]) == b"from a child"


@on_both_loops
async def test_nobody_is_given_up(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    one = client()
    os.write(one.stdout, b"out")
    one.end_process()
    one.hold()
    await one.is_over()
    assert read_all(one.readers[0]) == b"out"  # it stays for who reads later


@on_both_loops
async def test_one_that_reads_a_byte_at_a_time_is_given_up(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    monkeypatch.setattr(module, "PAUSE_SECONDS", SECONDS)
    one = client()
    os.write(one.stdout, b"x" * 65536)
    one.end_process()
    one.hold()
    await turns()
    while not one.over.is_set():
        assert os.read(one.readers[0], 1) == b"x"
        await asyncio.sleep(0.001)


@on_both_loops
async def test_a_slow_reader_has_longer_than_a_pause(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.3)
    one = client()
    os.write(one.stdout, b"x" * 20)
    one.end_process()
    one.hold()
    await turns()
    for _ in range(20):
        assert not one.over.is_set()
        os.read(one.readers[0], 1)
        await asyncio.sleep(0.02)
    await one.is_over()


@on_both_loops
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
async def test_who_has_read_before_may_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.3)
    path = str(tmp_path / "out")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    master, slave = ptys.openpty() if terminal else (-1, -1)
    opened = open_stdio("", path, "", terminal=terminal)
    stdout = slave if terminal else os.dup(opened.ends.stdout)
    streams, taken, over = Streams(opened, master), Readers(), asyncio.Event()
    os.write(stdout, b"one")
    while read_all(reader) == b"":
        await asyncio.sleep(0.001)
    os.write(stdout, b"two")
    os.close(stdout)
    await streams.drained()
    began = asyncio.get_running_loop().time()
    streams.when_read(taken, over.set)
    await asyncio.wait_for(over.wait(), SECONDS)
    assert asyncio.get_running_loop().time() - began > 0.25
    assert read_all(reader) == b"two"
    streams.close()
    taken.close()
    os.close(reader)


@on_both_loops
async def test_after_close_nothing_is_told(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    one = client()
    os.write(one.stdout, b"out")
    one.end_process()
    one.hold()
    one.streams.close()
    await asyncio.sleep(0.02)
    assert not one.over.is_set()


@on_both_loops
async def test_without_an_instance_to_spare_it_is_told_after_a_pause(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.05)
    one = client()
    os.write(one.stdout, b"out")
    one.end_process()
    await one.streams.drained()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        one.taken.close()
        spare = []
        while True:
            try:
                spare.append(os.dup(one.readers[0]))
            except OSError:
                break
        one.taken = Readers()
        one.hold()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
    assert not one.over.is_set()
    await one.is_over()
    assert "an end is told" in caplog.text


@on_both_loops
async def test_a_terminals_output(tmp_path: Path, patient: None) -> None:
    path = str(tmp_path / "out")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    master, slave = ptys.openpty()
    tty.setraw(slave)
    opened = open_stdio("", path, "", terminal=True)
    streams, taken, over = Streams(opened, master), Readers(), asyncio.Event()
    os.write(slave, b"out")
    os.close(slave)
    streams.when_read(taken, over.set)
    while (data := read_all(reader)) == b"":
        assert not over.is_set()
        await asyncio.sleep(0.001)
    assert data == b"out"
    await asyncio.wait_for(over.wait(), SECONDS)
    streams.close()
    taken.close()
    os.close(reader)


def test_reads_of_a_fifo_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    instance = inotify.inotify_init1()
    watch = inotify.inotify_add_watch(instance, str(tmp_path / "fifo"), inotify.IN_ACCESS)
    assert inotify.inotify_add_watch(instance, f"/proc/self/fd/{fifo}", inotify.IN_ACCESS) == watch
    os.write(fifo, b"two")
    assert list(inotify.read_events(instance)) == []
    os.read(fifo, 1)
    assert list(inotify.read_events(instance)) == [(watch, inotify.IN_ACCESS)]
    inotify.inotify_rm_watch(instance, watch)
    os.read(fifo, 1)
    assert [mask & inotify.IN_ACCESS for _, mask in inotify.read_events(instance)] == [0]
    with pytest.raises(FileNotFoundError, match="missing"):
        inotify.inotify_add_watch(instance, str(tmp_path / "missing"), inotify.IN_ACCESS)
    os.close(instance)
    os.close(fifo)
