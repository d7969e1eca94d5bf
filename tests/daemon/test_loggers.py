"""Containers whose output goes to logging programs (``binary://``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.daemon import Daemon
from tests.support.specs import runc_default

# Lines of both streams, with the name of the container before them.
PREFIX = """
import os, threading
def copy(fd):
    with open(fd, "rb") as lines, open(f"{FOLDER}/log", "ab") as log:
        for line in lines:
            log.write(os.environ["CONTAINER_NAMESPACE"].encode() + b"/" + os.environ["CONTAINER_ID"].encode())
            log.write(b" %d " % fd + line)
            log.flush()
threads = [threading.Thread(target=copy, args=(fd,)) for fd in (3, 4)]
for thread in threads: thread.start()
with open(f"{FOLDER}/pid", "w") as file: file.write(str(os.getpid()))
os.close(5)
for thread in threads: thread.join()
"""

MakeProgram = Callable[..., str]


@pytest.fixture
def program(place: Path) -> MakeProgram:
    def make(source: str = PREFIX) -> str:
        path = place / "logger"
        path.write_text(f"#!{sys.executable} -IS\nFOLDER = {str(place)!r}\n{source}")
        path.chmod(0o755)
        return f"binary://{path}"

    return make


def logged(place: Path) -> list[str]:
    return sorted((place / "log").read_text().splitlines())


def test_all_output_is_there_before_delete_answers(box: MakeBox, program: MakeProgram, place: Path) -> None:
    b = box(*shell("echo out; echo err >&2; echo last"))
    uri = program()
    b.make(stdout=uri, stderr=uri)
    b.start()
    b.wait()
    b.delete()
    name = f"{b.client.namespace}/{b.id}"
    assert logged(place) == [f"{name} 3 last", f"{name} 3 out", f"{name} 4 err"]
    wait.process_gone(int((place / "pid").read_text()))


def test_exec(box: MakeBox, program: MakeProgram, place: Path) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    b.exec("e1", *shell("echo from exec"), stdout=program())
    b.start("e1")
    assert b.wait("e1") == 0
    b.delete("e1")
    assert logged(place) == [f"{b.client.namespace}/e1 3 from exec"]


def test_terminal(box: MakeBox, program: MakeProgram, place: Path) -> None:
    b = box(spec=runc_default(*shell("tty"), terminal=True))
    b.make(stdout=program(), terminal=True)
    b.start()
    b.wait()
    b.delete()
    assert logged(place) == [f"{b.client.namespace}/{b.id} 3 /dev/pts/0"]


@pytest.mark.parametrize(
    ("source", "code"), [("raise SystemExit(1)", "UNKNOWN"), ("import os; os.kill(os.getpid(), 9)", "UNKNOWN")]
)
def test_program_that_fails_fails_create(box: MakeBox, program: MakeProgram, source: str, code: str) -> None:
    b = box("true")
    with refused(code, "ended before it was ready"):
        b.make(stdout=program(source).replace("binary://", "binary-v2://"))
    assert b.topics() == []


def test_create_that_fails_leaves_no_program(box: MakeBox, program: MakeProgram, place: Path) -> None:
    b = box("/no/such/program")
    with refused("UNKNOWN"):
        b.make(stdout=program())
    wait.process_gone(int((place / "pid").read_text()))


def test_program_outlives_the_daemon(place: Path, busybox: Path, program: MakeProgram) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            spec = runc_default(*shell("echo before; read x; echo after"))
            b = Box(client, f"box-{os.getpid()}", make_bundle(place / "bundle", spec, busybox))
            os.mkfifo(place / "stdin")
            b.make(stdin=str(place / "stdin"), stdout=program())
            b.start()
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            again = Box(client, b.id, b.bundle)
            (place / "stdin").write_text("\n")
            again.wait()
            again.delete()
        wait.process_gone(int((place / "pid").read_text()))
    assert logged(place) == [f"default/{b.id} 3 after", f"default/{b.id} 3 before"]
