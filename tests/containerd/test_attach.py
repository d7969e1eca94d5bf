"""``ctr tasks attach``: a task that was left alone gets a client again."""

from __future__ import annotations

import subprocess

from tests.containerd.rig import Containerd
from tests.containerd.test_run import AWAIT_SIZE
from tests.support.terminal import Terminal
from tests.support.wait import SECONDS


def test_input_output_and_exit_code(containerd: Containerd, name: str) -> None:
    script = "read line; echo out $line; echo err $line >&2; exit 3"
    command = containerd.command(*containerd.run_arguments(name, "sh", "-c", script, flags=["-d"]))
    # ctr closes the task's input at the end of its own, so that stays open.
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=containerd.environment) as client:
        assert client.wait(SECONDS) == 0
    done = containerd.try_ctr("tasks", "attach", name, stdin="hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out hello\n", "err hello\n")
    assert name not in containerd.tasks()
    containerd.ctr("containers", "rm", name)


def test_terminal(containerd: Containerd, name: str) -> None:
    command = containerd.command(*containerd.run_arguments(name, "sh", flags=["-d", "-t"]))
    with Terminal(command, env=containerd.environment) as terminal:
        assert terminal.process.wait(SECONDS) == 0
    command = containerd.command("tasks", "attach", name)
    with Terminal(command, rows=33, columns=77, env=containerd.environment) as terminal:
        terminal.type(f"{AWAIT_SIZE.format(33, 77)}; echo th''ere\n")
        terminal.read_until("there")
        terminal.type("exit 4\n")
        assert terminal.process.wait(SECONDS) == 4
    containerd.ctr("containers", "rm", name)
