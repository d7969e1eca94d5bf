"""Logging programs, as processes, with the test in place of the container."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shimd.errors import InvalidArgument, NotFound, RuntimeFailure
from shimd.linux import pty
from shimd.supervise import logger as module
from shimd.supervise.logger import Started, Whose, start_logger
from shimd.supervise.stdio import OpenStdio, open_stdio, reopen_stdio
from shimd.supervise.streams import Streams
from tests.support.loops import on_both_loops

SECONDS = 10.0
WHOSE = Whose("k8s.io", "c1")

# Reads both streams to their ends, each into a file of its own.
COPY = """
import os, sys, threading
def copy(fd, name):
    with open(name, "ab") as out:
        while data := os.read(fd, 65536):
            out.write(data)
threads = [threading.Thread(target=copy, args=(fd, f"{FOLDER}/{fd}")) for fd in (3, 4)]
for thread in threads: thread.start()
os.close(5)
for thread in threads: thread.join()
"""

MakeProgram = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> MakeProgram:
    """``program(source)``: the URI of a Python program; FOLDER in it is the test's folder."""

    def make(source: str, *, scheme: str = "binary", query: str = "") -> str:
        path = tmp_path / "logger"
        path.write_text(f"#!{sys.executable} -IS\nFOLDER = {str(tmp_path)!r}\n{source}")
        path.chmod(0o755)
        return f"{scheme}://{path}{query}"

    return make


@pytest.fixture
def started() -> Iterator[list[Started]]:
    """What the test has to end."""
    made: list[Started] = []
    yield made
    for one in made:
        os.close(one.stdout)
        os.close(one.stderr)
        one.logger.discard()


def await_end(started: Started) -> None:
    poller = select.poll()
    poller.register(started.logger.fileno(), select.POLLIN)
    assert poller.poll(SECONDS * 1000)


# ---- the program ----------------------------------------------------------------------------------------------------


def test_what_the_program_gets(program: MakeProgram, started: list[Started], tmp_path: Path) -> None:
    source = """
import json, os, signal, sys
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        pass  # of the directory that was listed
with open(f"{FOLDER}/seen", "w") as file:
    json.dump([sys.argv[1:], dict(os.environ), fds, os.getsid(0) == os.getpid(),
               sorted(signal.pthread_sigmask(0, []))], file)
with open("/proc/self/status") as status, open(f"{FOLDER}/status", "w") as file:
    file.write(status.read())
os.write(5, b"x")
"""
    started.append(start_logger(program(source, query="?b=1&a=two%20words&empty&b=2"), WHOSE))
    await_end(started[0])
    argv, environ, fds, leader, mask = json.loads((tmp_path / "seen").read_text())
    assert argv == ["b", "1", "a", "two words", "empty", ""]
    environ.pop("LC_CTYPE", None)  # Python's own
    assert environ == {"CONTAINER_ID": "c1", "CONTAINER_NAMESPACE": "k8s.io"}
    inherited = [fd for fd in map(int, os.listdir("/dev/fd")) if fd > 5 and _is_inheritable(fd)]
    foreign = {fd for fd, name in fds.items() if int(fd) in inherited or name.endswith("/logger")}  # its own source
    kinds = {fd: name.partition(":")[0] for fd, name in fds.items() if fd not in foreign}
    assert kinds == {**dict.fromkeys("012", "/dev/null"), **dict.fromkeys("345", "pipe")}
    assert (leader, mask) == (True, [])
    [ignored] = [line for line in (tmp_path / "status").read_text().splitlines() if line.startswith("SigIgn")]
    # Python, which this program is, ignores SIGPIPE and SIGXFSZ itself; 32 and 33 are glibc's.
    assert int(ignored.split()[1], 16) & ~(1 << 31 | 1 << 32) == 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)


def _is_inheritable(fd: int) -> bool:
    """What whoever started this test run has left open."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_both_streams_to_their_ends(program: MakeProgram, started: list[Started], tmp_path: Path) -> None:
    one = start_logger(program(COPY), WHOSE)
    os.write(one.stdout, b"out")
    os.write(one.stderr, b"err")
    os.close(one.stdout)
    os.close(one.stderr)
    await_end(one)
    one.logger.discard()
    assert ((tmp_path / "3").read_bytes(), (tmp_path / "4").read_bytes()) == (b"out", b"err")


@pytest.mark.parametrize(
    ("scheme", "source", "ready"),
    [
        ("binary", "import os, time; os.close(5); time.sleep(1000)", True),
        ("binary", "import os, time; os.write(5, b'1'); time.sleep(1000)", True),
        ("binary-v2", "import os, time; os.write(5, b'1'); os.close(5); time.sleep(1000)", True),
        ("binary-v2", "import os, time; os.close(5); time.sleep(1000)", False),
        ("binary-v2", "raise SystemExit(0)", False),
    ],
)
def test_readiness(program: MakeProgram, started: list[Started], scheme: str, source: str, *, ready: bool) -> None:
    uri = program(source, scheme=scheme)
    if ready:
        started.append(start_logger(uri, WHOSE))
    else:
        with pytest.raises(RuntimeFailure, match="ended before it was ready"):
            start_logger(uri, WHOSE)


def test_program_that_is_never_ready(program: MakeProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READY_SECONDS", 0.2)
    with pytest.raises(RuntimeFailure, match="not ready after"):
        start_logger(program("import time; time.sleep(1000)"), WHOSE)


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("binary://host/bin/true", InvalidArgument),
        ("binary:relative", InvalidArgument),
        ("binary:///a%00b", InvalidArgument),
        ("binary:///bin/true?a=%00", InvalidArgument),
        ("binary:///no/such/program", NotFound),
        ("binary:///etc/passwd", PermissionError),
    ],
)
def test_what_cannot_be_run(uri: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        start_logger(uri, WHOSE)


# ---- as the output of a process -------------------------------------------------------------------------------------


def test_process_writes_to_the_program_itself(program: MakeProgram, tmp_path: Path) -> None:
    opened = open_stdio("", program(COPY), "/ignored", terminal=False, whose=WHOSE)
    assert (opened.outputs, opened.pipes) == ({}, {})
    assert len(set(opened.ends)) == 3
    os.write(opened.ends.stdout, b"out")
    os.write(opened.ends.stderr, b"err")
    logger, opened.logger = opened.logger, None
    assert logger is not None
    opened.close()
    await_end(Started(logger, -1, -1))
    logger.discard()
    assert ((tmp_path / "3").read_bytes(), (tmp_path / "4").read_bytes()) == (b"out", b"err")


def test_given_up_before_the_process_was_made(program: MakeProgram) -> None:
    opened = open_stdio("", program(COPY), "", terminal=False, whose=WHOSE)
    assert opened.logger is not None
    fd = opened.logger.fileno()
    opened.close()
    opened.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("names", [("binary:///bin/true", "", ""), ("", "", "binary:///bin/true")])
def test_for_standard_output_only(names: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidArgument, match="logging program"):
        open_stdio(*names, terminal=False)


def write_and_end(opened: OpenStdio, data: bytes) -> None:
    """As the process does."""
    os.write(opened.ends.stdout, data)
    opened.close_ends()


@on_both_loops
async def test_drained_when_the_program_has_ended(program: MakeProgram, tmp_path: Path) -> None:
    slow = COPY.replace("        while", "        import time; time.sleep(0.2)\n        while")
    opened = open_stdio("", program(slow), "", terminal=False, whose=WHOSE)
    write_and_end(opened, b"last words")
    streams = Streams(opened, -1)
    assert not streams.is_drained
    await asyncio.wait_for(streams.drained(), SECONDS)
    assert (tmp_path / "3").read_bytes() == b"last words"
    streams.close()


@pytest.mark.parametrize("stubborn", [False, True])
@on_both_loops
async def test_program_that_goes_on_is_told_to_end(
    program: MakeProgram, monkeypatch: pytest.MonkeyPatch, *, stubborn: bool
) -> None:
    monkeypatch.setattr(module, "_TERM_SECONDS", 0.1)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    opened = open_stdio("", program(ignore + "import os, time; os.close(5); time.sleep(1000)"), "", terminal=False)
    streams = Streams(opened, -1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(streams.drained(), 0.1)
    streams.close()
    streams.close()
    await asyncio.wait_for(streams.drained(), SECONDS)


@on_both_loops
async def test_program_goes_on_with_the_process_when_the_daemon_ends(program: MakeProgram, tmp_path: Path) -> None:
    opened = open_stdio(
        "", program(f"import os; open(FOLDER + '/pid', 'w').write(str(os.getpid()))\n{COPY}"), "", terminal=False
    )
    process = os.dup(opened.ends.stdout)
    Streams(opened, -1).close()
    os.write(process, b"later")
    os.close(process)
    os.waitpid(int((tmp_path / "pid").read_text()), 0)
    assert (tmp_path / "3").read_bytes() == b"later"


@on_both_loops
async def test_program_that_dies_is_reported(program: MakeProgram, caplog: pytest.LogCaptureFixture) -> None:
    opened = open_stdio("", program("import os; os.write(5, b'1'); os._exit(3)"), "", terminal=False)
    streams = Streams(opened, -1)
    await asyncio.wait_for(streams.drained(), SECONDS)
    assert "ended with 3" in caplog.text
    streams.close()


@pytest.mark.parametrize("again", [False, True])
@on_both_loops
async def test_terminal(program: MakeProgram, tmp_path: Path, *, again: bool) -> None:
    """What it shows is copied; for a daemon that was started again, to another run of the program."""
    uri = program(COPY)
    opened = open_stdio("", uri, "", terminal=True, whose=WHOSE)
    if again:
        opened.close()
        opened, problem = reopen_stdio("", uri, "", terminal=True, pipes={}, whose=WHOSE)
        assert not problem
    master, slave = os.openpty()
    streams = Streams(opened, master)
    pty.set_winsize(slave, 24, 80)
    os.write(slave, b"on the screen")
    os.close(slave)
    await asyncio.wait_for(streams.drained(), SECONDS)
    streams.close()
    assert ((tmp_path / "3").read_bytes(), (tmp_path / "4").read_bytes()) == (b"on the screen", b"")
