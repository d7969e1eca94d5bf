"""Signals to a call in the foreground are for the process of the container, and none is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.container.boxes import NEWER, OURS_ONLY, Box
from tests.support import wait

COUNT = "n=0; trap 'n=$((n+1)); echo $n' {name}; trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done"


@contextmanager
def foreground(box: Box, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """After its first line, "ready"."""
    box.shell(script)
    box.write()
    command = [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert wait.read_until(process.stdout.fileno(), b"\n").startswith(b"ready\n")
        yield process


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return wait.read_until(process.stdout.fileno(), b"\n")


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "CONT", "TSTP"])
def test_a_signal_reaches_the_process(box: Box, name: str) -> None:
    with foreground(box, COUNT.format(name=name)) as process:
        for number in range(1, 4):
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert line(process) == b"%d\n" % number
        process.terminate()
        assert process.wait(wait.SECONDS) == 9


@OURS_ONLY  # runc reads its streams in other threads
def test_a_signal_while_nobody_reads_our_output(box: Box) -> None:
    with foreground(box, "trap 'exit 4' USR1; echo ready; yes & wait") as process:
        assert process.stdout is not None
        wait.readable(process.stdout.fileno())
        pid = box.state()["pid"]
        process.send_signal(signal.SIGUSR1)
        wait.process_gone(pid)
        process.stdout.read()
        assert process.wait(wait.SECONDS) == 4


@NEWER  # runc 1.1 loses it
def test_a_signal_before_there_is_a_process(box: Box) -> None:
    """It waits for the process to be there."""
    marker = box.bundle / "began"
    fifo = box.bundle / "fifo"
    os.mkfifo(fifo)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {marker}; cat {fifo}"]}
    box.spec["hooks"] = {"createRuntime": [hook]}
    box.spec["process"]["args"] = ["sleep", "1000"]
    # The first process of a pid namespace ignores what it has no handler for.
    box.spec["linux"]["namespaces"] = [entry for entry in box.spec["linux"]["namespaces"] if entry["type"] != "pid"]
    box.write()
    command = [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        while not marker.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        with fifo.open("w"):
            pass
        assert process.wait(wait.SECONDS) == 128 + signal.SIGUSR1


def test_exec_has_its_signals_too(box: Box) -> None:
    box.spec["process"]["args"] = ["sleep", "1000"]
    box.start()
    script = "trap 'exit 6' USR1; echo ready; while :; do sleep 0.02; done"
    command = [*box.runtime.command, "exec", box.id, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(wait.SECONDS) == 6
    assert box.status() == "running"
