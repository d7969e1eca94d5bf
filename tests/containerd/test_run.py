"""``ctr run`` and what can be done with its containers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.containerd import image
from tests.containerd.rig import IS_RUNC, Containerd
from tests.support.terminal import Terminal
from tests.support.wait import SECONDS

PROGRAM = ("sh", "-c", "yes 0123456789 | head -n 200000")
OUTPUT = b"0123456789\n" * 200_000
CHUNK = 8192
AWAIT_SIZE = "while test \"$(stty size)\" != '{} {}'; do echo waits; sleep 0.05; done"


def test_output_and_exit_code_reach_the_client(containerd: Containerd, name: str) -> None:
    done = containerd.run(name, "sh", "-c", "echo out; echo err >&2; exit 7", flags=["--rm"])
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert name not in containerd.tasks()
    assert name not in containerd.ctr("containers", "ls", "-q").split()


def test_much_output_is_complete(containerd: Containerd, name: str) -> None:
    done = containerd.run(name, *PROGRAM, flags=["--rm"])
    assert done.returncode == 0
    assert done.stdout == OUTPUT.decode()


def test_output_to_a_slow_client_is_complete(containerd: Containerd, name: str) -> None:
    """ctr closes its ends of the FIFOs when it hears of the exit, with what it has not read by then (cio's Cancel)."""
    if IS_RUNC:
        pytest.skip("the shim of runc tells of the exit while its output is on the way")
    command = containerd.command(*containerd.run_arguments(name, *PROGRAM, flags=["--rm"]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=containerd.environment) as client:
        assert client.stdout is not None
        fcntl.fcntl(client.stdout, fcntl.F_SETPIPE_SZ, CHUNK)
        received = b""
        while data := os.read(client.stdout.fileno(), CHUNK):
            received += data
            # At once until little more is left than fits in the pipes between the program and the client.
            if len(received) > len(OUTPUT) - 200_000:
                time.sleep(0.001)
        assert client.wait(SECONDS) == 0
    assert received == OUTPUT


def test_input_reaches_the_program(containerd: Containerd, name: str) -> None:
    done = containerd.try_ctr(*containerd.run_arguments(name, "head", "-n", "2", flags=["--rm"]), stdin="a\nb\n")
    assert (done.returncode, done.stdout) == (0, "a\nb\n")


def test_rootfs_of_the_snapshotter_is_writable_and_private(containerd: Containerd, name: str) -> None:
    for _ in range(2):
        done = containerd.run(name, "sh", "-c", "test ! -e /new && echo x > /new && cat /new", flags=["--rm"])
        assert (done.returncode, done.stdout) == (0, "x\n")


def test_rootfs_is_an_overlay_of_the_image_that_was_imported(containerd: Containerd, name: str) -> None:
    done = containerd.run(name, "grep", " / ", "/proc/mounts", flags=["--rm"])
    assert re.match(r"overlay / overlay \S*lowerdir=", done.stdout), done.stdout + done.stderr
    listing = containerd.ctr("images", "ls", f"name=={image.NAME}")
    assert image.digest(containerd.folder / "busybox.tar") in listing


def test_program_that_is_missing_fails_with_its_name_and_leaves_nothing(containerd: Containerd, name: str) -> None:
    done = containerd.run(name, "/no/such/program", flags=["--rm"])
    assert done.returncode != 0
    assert "/no/such/program" in done.stderr
    assert name not in containerd.tasks()
    containerd.try_ctr("containers", "rm", name)  # older versions leave the container's record


def test_terminal(containerd: Containerd, name: str) -> None:
    command = containerd.command(*containerd.run_arguments(name, "sh", flags=["--rm", "-t"]))
    with Terminal(command, rows=30, columns=99, env=containerd.environment) as terminal:
        terminal.read_until("# ")
        # ctr tells the size when the shell runs already.
        terminal.type(f"{AWAIT_SIZE.format(30, 99)}; tty\n")
        terminal.read_until("/dev/")
        terminal.resize(40, 111)
        terminal.type(f"{AWAIT_SIZE.format(40, 111)}; echo re''sized\n")
        # And it begins to listen for changes a moment after that: one that it missed it is told again.
        while "resized" not in terminal.read_until("\n"):
            terminal.signal(signal.SIGWINCH)
        terminal.type("exit 5\n")
        assert terminal.process.wait(SECONDS) == 5


def test_detached_task_is_listed_killed_and_deleted(containerd: Containerd, name: str) -> None:
    containerd.detached(name, "sleep", "1000")
    pid, status = containerd.tasks()[name]
    assert status == "RUNNING"
    assert str(pid) in containerd.ctr("tasks", "ps", name)
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    containerd.ctr("tasks", "kill", "--signal", "KILL", name)
    containerd.await_stopped(name)
    assert "137" in containerd.try_ctr("tasks", "delete", name).stderr
    assert name not in containerd.tasks()
    containerd.ctr("containers", "rm", name)


def test_exec(containerd: Containerd, name: str) -> None:
    containerd.detached(name, "sleep", "1000")
    done = containerd.try_ctr("tasks", "exec", "--exec-id", "e1", name, "sh", "-c", "echo $1; exit 4", "sh", "hello")
    assert (done.returncode, done.stdout) == (4, "hello\n")
    arguments = ("tasks", "exec", "--exec-id", "e2", "-t", name, "sh", "-c", "tty; exit 6")
    with Terminal(containerd.command(*arguments), env=containerd.environment) as terminal:
        terminal.read_until("/dev/")
        assert terminal.process.wait(SECONDS) == 6
    containerd.remove(name)


def test_pause_and_resume(containerd: Containerd, name: str) -> None:
    containerd.detached(name, "sleep", "1000")
    containerd.ctr("tasks", "pause", name)
    assert containerd.tasks()[name][1] == "PAUSED"
    containerd.ctr("tasks", "resume", name)
    assert containerd.tasks()[name][1] == "RUNNING"
    containerd.remove(name)


def test_metrics(containerd: Containerd, name: str) -> None:
    containerd.detached(name, "sleep", "1000")
    text = containerd.ctr("tasks", "metrics", name)
    values = dict(re.findall(r"^(\S+) +(\d+)", text, re.MULTILINE))
    usage = int(values.get("memory.usage_in_bytes") or values["memory.usage"])
    assert 4096 <= usage < 64 << 20, text
    whole = json.loads(containerd.ctr("tasks", "metrics", "--format", "json", name))
    assert whole["pids"]["current"] == 1
    containerd.remove(name)


def test_checkpoint_is_refused_and_the_task_goes_on(containerd: Containerd, name: str) -> None:
    if IS_RUNC:
        pytest.skip("runc makes checkpoints")
    containerd.detached(name, "sleep", "1000")
    before = containerd.tasks()[name]
    images = containerd.ctr("images", "ls", "-q")
    done = containerd.try_ctr("tasks", "checkpoint", name)
    assert done.returncode != 0
    assert "checkpoint is not supported yet" in done.stderr
    assert containerd.tasks()[name] == before
    assert containerd.ctr("images", "ls", "-q") == images
    containerd.remove(name)


def test_log_uri(containerd: Containerd, name: str) -> None:
    if IS_RUNC and containerd.peer.version == "1.6":
        pytest.skip("the shim of runc in containerd 1.6 loses output that comes right before the exit")
    log = containerd.folder / "logs" / "file.log"
    containerd.detached(name, "sh", "-c", "echo to a file; echo error >&2", flags=["--log-uri", f"file://{log}"])
    containerd.await_stopped(name)
    containerd.ctr("tasks", "delete", name)
    assert sorted(log.read_text().splitlines()) == ["error", "to a file"]  # nobody orders the two streams
    containerd.ctr("containers", "rm", name)


def test_logging_program(containerd: Containerd, name: str) -> None:
    logger = containerd.folder / "logger"
    logger.write_text('#!/bin/sh\nexec 5>&-\n{ echo "$CONTAINER_ID"; cat <&3; } >"$2"\n')
    logger.chmod(0o755)
    log = containerd.folder / "logger.log"
    containerd.detached(name, "echo", "to a program", flags=["--log-uri", f"binary://{logger}?file={log}"])
    containerd.await_stopped(name)
    containerd.ctr("tasks", "delete", name)
    assert log.read_text() == f"{name}\nto a program\n"
    containerd.ctr("containers", "rm", name)
