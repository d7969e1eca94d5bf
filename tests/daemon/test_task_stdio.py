"""Standard streams of the task API: FIFOs as containerd makes them, files, terminals."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shimd.api.containerd import task_v3_pb2 as api
from shimd.linux import pipe
from tests.daemon.boxes import MakeBox, refused, shell
from tests.support import wait
from tests.support.fifo import Fifos
from tests.support.specs import runc_default


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "fifos"


def test_fifos(box: MakeBox, folder: Path) -> None:
    b = box(*shell("echo out; echo bad >&2"))
    with Fifos(folder) as fifos:
        b.make(stdout=fifos.stdout, stderr=fifos.stderr)
        b.start()
        b.wait()
        b.delete()
        assert (fifos.read_stdout(), fifos.read_stderr()) == (b"out\n", b"bad\n")


def test_bytes_before_the_exit_are_in_the_fifo_when_delete_answers(box: MakeBox, folder: Path) -> None:
    b = box(*shell("dd if=/dev/zero bs=65536 count=1 2>/dev/null"))
    with Fifos(folder, stderr=False) as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        b.wait()
        b.delete()
        assert len(os.read(fifos.stdout_fd(), 1 << 20)) == 65536


def test_reader_may_come_late_and_go(box: MakeBox, folder: Path) -> None:
    b = box(*shell("echo one; read go; echo two; read go; echo three"))
    with Fifos(folder, stdin=True, stderr=False) as fifos:
        b.make(stdin=fifos.stdin, stdout=fifos.stdout)
        b.start()
        assert fifos.stdout_until(b"\n") == b"one\n"
        os.close(fifos._out)
        fifos.write(b"\n")
        reader = os.open(fifos.stdout, os.O_RDONLY | os.O_NONBLOCK)
        fifos._out = reader
        assert fifos.stdout_until(b"\n") == b"two\n"
        fifos.write(b"\n")
        assert b.wait() == 0
        b.delete()
        assert fifos.read_stdout() == b"three\n"


def test_slow_reader_holds_the_program_back_and_gets_all(box: MakeBox, folder: Path) -> None:
    b = box(*shell("seq 1 300000; echo done >&2"))
    with Fifos(folder) as fifos:
        b.make(stdout=fifos.stdout, stderr=fifos.stderr)
        b.start()
        expected = b"".join(b"%d\n" % number for number in range(1, 300001))
        assert fifos.stdout_until(b"\n300000\n") == expected
        b.wait()
        b.delete()
        assert fifos.read_stderr() == b"done\n"


def test_bytes_before_the_exit_are_read_when_wait_answers(box: MakeBox, folder: Path) -> None:
    b = box(*shell("seq 1 30000"))
    received = []
    with Fifos(folder, stderr=False) as fifos, ThreadPoolExecutor(1) as pool:

        def read() -> None:
            while data := wait.read_some(fifos.stdout_fd(), size=4096):
                received.append(data)
                time.sleep(0.001)  # as one who writes elsewhere what it reads

        b.make(stdout=fifos.stdout)
        reading = pool.submit(read)
        b.start()
        b.wait()
        assert pipe.bytes_available(fifos.stdout_fd()) == 0
        reading.result()
        b.delete()
    assert b"".join(received) == b"".join(b"%d\n" % number for number in range(1, 30001))


def test_exit_is_told_though_nobody_reads(box: MakeBox, folder: Path) -> None:
    b = box(*shell("echo unread"))
    with Fifos(folder, stderr=False) as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        assert b.wait() == 0
        assert fifos.read_stdout() == b"unread\n"
        b.delete()


def test_input_ends_with_close_io_and_the_client(box: MakeBox, folder: Path) -> None:
    b = box("wc", "-c")
    with Fifos(folder, stdin=True, stderr=False) as fifos:
        b.make(stdin=fifos.stdin, stdout=fifos.stdout)
        b.start()
        fifos.write(bytes(200_000))
        fifos.close_stdin()
        assert b.status() == "RUNNING"  # a client that detaches does not end the input
        fifos.write(b"x")
        b.task.CloseIO(api.CloseIORequest(id=b.id, stdin=True))
        fifos.close_stdin()
        assert b.wait() == 0
        b.delete()
        assert fifos.read_stdout() == b"200001\n"


def test_close_io_twice_and_without_stdin(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    for _ in range(2):
        b.task.CloseIO(api.CloseIORequest(id=b.id, stdin=True))


def test_files(box: MakeBox, place: Path) -> None:
    b = box(*shell("echo out; echo bad >&2"))
    both = place / "logs/deep/both"
    b.make(stdout=f"file://{both}", stderr=f"file://{both}")
    b.start()
    b.wait()
    b.delete()
    assert sorted(both.read_text().split()) == ["bad", "out"]
    existing = place / "existing"
    existing.write_text("before\n")
    b.make(stdout=str(existing))
    b.start()
    b.wait()
    b.delete()
    assert existing.read_text() == "before\nout\n"


def test_container_never_gets_the_file_itself(box: MakeBox, place: Path) -> None:
    log = place / "log"
    b = box(*shell("readlink /proc/self/fd/1 | grep -q pipe && exit 5"))
    b.make(stdout=f"file://{log}")
    b.start()
    assert b.wait() == 5


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("/no/such/fifo", "NOT_FOUND"),
        ("relative", "INVALID_ARGUMENT"),
        ("file://host/path", "INVALID_ARGUMENT"),
        ("binary:///bin/no-such-logger", "NOT_FOUND"),
        ("/dev/zero", "INVALID_ARGUMENT"),
    ],
)
def test_bad_names_are_refused(box: MakeBox, uri: str, code: str) -> None:
    b = box("true")
    with refused(code, uri):
        b.make(stdout=uri)
    assert b.topics() == []


def test_terminal(box: MakeBox, folder: Path) -> None:
    script = "tty; stty size; read a; stty size; stat -c %u:%g /dev/pts/0"
    b = box(spec=runc_default(*shell(script), terminal=True))
    with Fifos(folder, stdin=True, stderr=False) as fifos:
        b.make(stdin=fifos.stdin, stdout=fifos.stdout, terminal=True)
        b.task.ResizePty(api.ResizePtyRequest(id=b.id, width=120, height=40))
        assert b.state().terminal
        b.start()
        fifos.stdout_until(b"40 120\r\n")
        b.task.ResizePty(api.ResizePtyRequest(id=b.id, width=80, height=25))
        fifos.write(b"go\n")
        assert b.wait() == 0
        b.delete()
        output = fifos.read_stdout()
    assert b"25 80\r\n0:5\r\n" in output


def test_terminal_must_agree_with_config(box: MakeBox) -> None:
    with refused("INVALID_ARGUMENT", "terminal"):
        box("true").make(terminal=True)


def test_terminal_of_an_exec(box: MakeBox, folder: Path) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    with Fifos(folder, stdin=True, stderr=False) as fifos:
        b.exec("e1", *shell("tty; read a; echo got $a"), terminal=True, stdin=fifos.stdin, stdout=fifos.stdout)
        b.start("e1")
        fifos.write(b"hello\n")
        assert b.wait("e1") == 0
        b.delete("e1")
        assert b"got hello\r\n" in fifos.read_stdout()


def test_delete_does_not_wait_for_those_that_inherited_the_output(box: MakeBox, folder: Path) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    with Fifos(folder, stderr=False) as fifos:
        b.exec("e1", *shell("sleep 1000 & echo begun"), stdout=fifos.stdout)
        b.start("e1")
        assert b.wait("e1") == 0
        b.delete("e1")
        assert fifos.read_stdout(seconds=5) == b"begun\n"


def test_yes_head(box: MakeBox) -> None:
    """A program inside gets SIGPIPE as anywhere."""
    b = box(*shell("yes | head -1"))
    b.make()
    b.start()
    assert b.wait() == 0


def test_daemon_keeps_no_descriptor_of_ended_containers(box: MakeBox, folder: Path, daemon: object) -> None:
    pid: int = daemon.pid  # type: ignore[attr-defined]
    b = box("true")
    with Fifos(folder) as fifos:
        counts = []
        for _ in range(4):
            b.make(stdout=fifos.stdout, stderr=fifos.stderr)
            b.start()
            b.wait()
            b.delete()
            counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        assert counts[1:] == counts[1:2] * 3
