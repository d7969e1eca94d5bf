"""The streams of a process, with the test in place of the client (FIFOs, files) and of the process (pipes, pty)."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shimd.errors import FailedPrecondition, InvalidArgument, NotFound
from shimd.linux import pty
from shimd.supervise.stdio import OpenStdio, open_stdio, parse_target
from shimd.supervise.streams import Streams
from tests.support.loops import on_both_loops

SECONDS = 10.0

MakeFifo = Callable[[str], str]


@pytest.fixture
def fifo(tmp_path: Path) -> MakeFifo:
    def make(name: str) -> str:
        os.mkfifo(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """What the test opened and has to close."""
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


def process_copies(opened: OpenStdio, fds: list[int]) -> list[int]:
    """What the process has as 0, 1, 2 after the launcher passed them on."""
    copies = [os.dup(fd) for fd in opened.ends]
    fds += copies
    return copies


def let_go(fds: list[int], *closed: int) -> None:
    for fd in closed:
        fds.remove(fd)
        os.close(fd)


def open_reader(path: str, fds: list[int]) -> int:
    fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return fds[-1]


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await asyncio.wait_for(event.wait(), SECONDS)
    finally:
        loop.remove_reader(fd)


async def read_some(fd: int) -> bytes:
    await readable(fd)
    return os.read(fd, 65536)


async def until_broken(fd: int) -> None:
    """Until nobody reads any more."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def write() -> None:
        try:
            os.write(fd, b"x")
        except BrokenPipeError:
            closed.set()

    loop.add_writer(fd, write)
    await asyncio.wait_for(closed.wait(), SECONDS)
    loop.remove_writer(fd)


async def drained(streams: Streams) -> None:
    await asyncio.wait_for(streams.drained(), SECONDS)


@pytest.mark.parametrize(
    ("uri", "kind", "path"),
    [
        ("", "null", ""),
        ("/dev/null", "null", ""),
        ("attach:", "attach", ""),
        ("/run/x", "path", "/run/x"),
        ("fifo:///run/x", "path", "/run/x"),
        ("file:///var/log/a%20b", "file", "/var/log/a b"),
    ],
)
def test_targets(uri: str, kind: str, path: str) -> None:
    assert parse_target(uri) == (kind, path)


@pytest.mark.parametrize("uri", ["relative", "file://host/x", "http:///x", "file:relative", "fifo://"])
def test_bad_targets(uri: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_target(uri)


def test_schemes_of_others() -> None:
    assert parse_target("binary:///usr/bin/logger?x=y") == ("logger", "binary:///usr/bin/logger?x=y")


def test_failures_leave_nothing_open(tmp_path: Path, fifo: MakeFifo) -> None:
    good = fifo("good")
    (tmp_path / "directory").mkdir()
    for names in (("/missing", "", ""), (good, good, "/missing"), (good, good, "http://x"), (good, "/dev/tty", "")):
        with pytest.raises((NotFound, InvalidArgument, OSError)):
            open_stdio(*names, terminal=False)
    with pytest.raises((InvalidArgument, OSError)):
        open_stdio(str(tmp_path / "directory"), "", "", terminal=False)
    open_stdio(good, good, good, terminal=False).close()


def test_the_process_never_gets_the_clients_files(tmp_path: Path, fifo: MakeFifo) -> None:
    (tmp_path / "log").touch()
    opened = open_stdio(fifo("in"), str(tmp_path / "log"), f"file://{tmp_path}/new/err", terminal=False)
    kinds = [stat.S_IFMT(os.fstat(fd).st_mode) for fd in opened.ends]
    assert kinds == [stat.S_IFIFO] * 3
    assert all("pipe:" in os.readlink(f"/proc/self/fd/{fd}") for fd in opened.ends)
    assert all(os.get_blocking(fd) for fd in opened.ends)
    opened.close()
    opened.close()


def test_nothing_is_dev_null() -> None:
    opened = open_stdio("", "", "", terminal=False)
    assert {os.readlink(f"/proc/self/fd/{fd}") for fd in opened.ends} == {"/dev/null"}
    opened.close()


@on_both_loops
async def test_output_reaches_a_reader_that_comes_and_goes(fifo: MakeFifo, fds: list[int]) -> None:
    path = fifo("out")
    opened = open_stdio("", path, "", terminal=False)
    _, stdout, _ = process_copies(opened, fds)
    streams = Streams(opened, -1)
    for word in (b"first", b"second"):
        reader = open_reader(path, fds)
        os.write(stdout, word)
        assert await read_some(reader) == word
        let_go(fds, reader)
    os.write(stdout, b"kept while nobody reads")
    await asyncio.sleep(0)
    reader = open_reader(path, fds)
    assert await read_some(reader) == b"kept while nobody reads"
    let_go(fds, stdout)
    await drained(streams)
    assert await read_some(reader) == b""
    assert streams.is_drained
    streams.close()
    streams.close()


@on_both_loops
async def test_drained_waits_for_the_reader(fifo: MakeFifo, fds: list[int]) -> None:
    path = fifo("out")
    opened = open_stdio("", path, "", terminal=False)
    _, stdout, _ = process_copies(opened, fds)
    os.set_blocking(stdout, False)
    streams = Streams(opened, -1)
    reader = open_reader(path, fds)
    written = 0
    for _ in range(100):
        try:
            written += os.write(stdout, b"x" * 4096)
        except BlockingIOError:
            await asyncio.sleep(0)
    let_go(fds, stdout)
    waiting = asyncio.ensure_future(streams.drained())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    received = 0
    while received < written:
        received += len(await read_some(reader))
    await asyncio.wait_for(waiting, SECONDS)
    streams.close()


@on_both_loops
async def test_drained_does_not_wait_for_children_that_inherited_the_output(fifo: MakeFifo, fds: list[int]) -> None:
    out, err = fifo("out"), fifo("err")
    opened = open_stdio("", out, err, terminal=False)
    _, stdout, stderr = process_copies(opened, fds)
    streams = Streams(opened, -1)
    readers = [open_reader(path, fds) for path in (out, err)]
    os.write(stdout, b"out")
    os.write(stderr, b"err")
    await drained(streams)
    assert [await read_some(reader) for reader in readers] == [b"out", b"err"]
    os.write(stdout, b"from the child")
    assert await read_some(readers[0]) == b"from the child"
    streams.close()
    with pytest.raises(BrokenPipeError):
        os.write(stdout, b"x")


@on_both_loops
async def test_drained_gives_up_when_it_is_cancelled(fifo: MakeFifo, fds: list[int]) -> None:
    opened = open_stdio("", fifo("out"), "", terminal=False)
    _, stdout, _ = process_copies(opened, fds)
    os.set_blocking(stdout, False)
    streams = Streams(opened, -1)
    for _ in range(200):
        try:
            os.write(stdout, b"x" * 4096)
        except BlockingIOError:
            await asyncio.sleep(0)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(streams.drained(), 0.01)
    streams.close()
    assert streams.is_drained


@on_both_loops
async def test_both_outputs_in_one_file_keep_their_order(tmp_path: Path, fds: list[int]) -> None:
    log = tmp_path / "deep/log"
    opened = open_stdio("", f"file://{log}", f"file://{log}", terminal=False)
    _, stdout, stderr = process_copies(opened, fds)
    streams = Streams(opened, -1)
    for number in range(4):
        os.write((stdout, stderr)[number % 2], b"%d\n" % number)
        while log.read_text().count("\n") <= number:
            await asyncio.sleep(0)
    assert log.read_text() == "0\n1\n2\n3\n"
    assert stat.S_IMODE(log.stat().st_mode) & 0o133 == 0
    let_go(fds, stdout, stderr)
    await drained(streams)
    streams.close()


@on_both_loops
async def test_input_ends_when_the_last_writer_and_we_have_closed(fifo: MakeFifo, fds: list[int]) -> None:
    path = fifo("in")
    opened = open_stdio(path, "", "", terminal=False)
    stdin = process_copies(opened, fds)[0]
    streams = Streams(opened, -1)
    client = os.open(path, os.O_WRONLY)
    os.write(client, b"hello")
    assert await read_some(stdin) == b"hello"
    os.close(client)  # a client that detaches is no end of the input
    client = os.open(path, os.O_WRONLY)
    streams.close_stdin()
    streams.close_stdin()
    os.write(client, b"again")
    assert await read_some(stdin) == b"again"
    os.close(client)
    assert await read_some(stdin) == b""
    streams.close()


@on_both_loops
async def test_close_io_with_unread_input_delivers_it_first(fifo: MakeFifo, fds: list[int]) -> None:
    path = fifo("in")
    opened = open_stdio(path, "", "", terminal=False)
    stdin = process_copies(opened, fds)[0]
    client = os.open(path, os.O_WRONLY)
    os.write(client, b"x" * 60_000)
    os.close(client)
    streams = Streams(opened, -1)
    streams.close_stdin()
    received = b""
    while part := await read_some(stdin):
        received += part
    assert received == b"x" * 60_000
    streams.close()


@on_both_loops
async def test_input_from_a_file(tmp_path: Path, fds: list[int]) -> None:
    (tmp_path / "input").write_bytes(b"line\n" * 100_000)
    opened = open_stdio(str(tmp_path / "input"), "", "", terminal=False)
    stdin = process_copies(opened, fds)[0]
    streams = Streams(opened, -1)
    received = b""
    while part := await read_some(stdin):
        received += part
    assert received == b"line\n" * 100_000
    streams.close()


@on_both_loops
async def test_process_that_does_not_read_its_input(fifo: MakeFifo, fds: list[int]) -> None:
    path = fifo("in")
    opened = open_stdio(path, "", "", terminal=False)
    stdin = process_copies(opened, fds)[0]
    streams = Streams(opened, -1)
    let_go(fds, stdin)
    client = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"x")
    await until_broken(client)
    os.close(client)
    streams.close()


def open_terminal(fds: list[int]) -> tuple[int, int]:
    """(master, slave); the master becomes the streams'."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    pty.unlockpt(master)
    fds.append(pty.open_peer(master))
    return master, fds[-1]


@on_both_loops
async def test_terminal(fifo: MakeFifo, fds: list[int]) -> None:
    stdin, stdout = fifo("in"), fifo("out")
    opened = open_stdio(stdin, stdout, "/missing is ignored", terminal=True)
    assert opened.ends == (-1, -1, -1)
    master, slave = open_terminal(fds)
    streams = Streams(opened, master)
    reader = open_reader(stdout, fds)
    streams.resize(132, 43)
    assert pty.get_winsize(slave) == (43, 132)
    os.write(slave, b"prompt$ ")
    assert await read_some(reader) == b"prompt$ "
    client = os.open(stdin, os.O_WRONLY)
    os.write(client, b"exit\n")
    assert await read_some(reader) == b"exit\r\n"  # the echo
    assert os.read(slave, 100) == b"exit\n"
    os.close(client)
    os.write(slave, b"bye")
    let_go(fds, slave)
    await drained(streams)
    assert await read_some(reader) == b"bye"
    assert await read_some(reader) == b""
    streams.close()
    with pytest.raises(FailedPrecondition):
        streams.resize(1, 1)


@on_both_loops
async def test_terminal_that_children_hold_is_drained(fifo: MakeFifo, fds: list[int]) -> None:
    stdout = fifo("out")
    opened = open_stdio("", stdout, "", terminal=True)
    master, slave = open_terminal(fds)
    streams = Streams(opened, master)
    reader = open_reader(stdout, fds)
    os.write(slave, b"last words")
    await drained(streams)
    assert await read_some(reader) == b"last words"
    streams.close()


@on_both_loops
async def test_close_in_every_state(fifo: MakeFifo, fds: list[int]) -> None:
    """Whatever is under way: nothing is left, and the process sees it."""
    for number in range(3):
        stdin, stdout = fifo(f"in{number}"), fifo(f"out{number}")
        opened = open_stdio(stdin, stdout, "", terminal=False)
        copies = process_copies(opened, fds)
        os.set_blocking(copies[1], False)
        streams = Streams(opened, -1)
        for _ in range(number * 20):
            try:
                os.write(copies[1], b"x" * 8192)
            except BlockingIOError:
                await asyncio.sleep(0)
        streams.close()
        with pytest.raises(BrokenPipeError):
            os.write(copies[1], b"x")
        assert await read_some(copies[0]) == b""
