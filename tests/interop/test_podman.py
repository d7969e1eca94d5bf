"""Podman with shimrun as its OCI runtime, as root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.podman_rig import IMAGE, Podman
from tests.support.requires import requires
from tests.support.terminal import Terminal

TRAPS = "trap 'echo hup' HUP; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


@pytest.fixture
def box(podman: Podman, name: str) -> Iterator[str]:
    """A running container that tells of signals."""
    with podman.removed(name):
        podman.detached(name, "--memory", "64m", IMAGE, "sh", "-c", TRAPS)
        podman.await_log(name, "ready")
        yield name


def test_output_and_exit_code_reach_the_client(podman: Podman) -> None:
    done = podman.run(IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert podman("ps", "--all", "--quiet") == ""


def test_input_reaches_the_program_and_ends(podman: Podman) -> None:
    done = podman.run("--interactive", IMAGE, "sh", "-c", "wc -c; exit 3", stdin="x" * 100_000)
    assert (done.returncode, done.stdout) == (3, "100000\n")


@pytest.mark.parametrize(
    ("code", "command", "text"),
    [
        (126, ["/etc/passwd"], "permission denied"),
        (127, ["/no/such/program"], "no such file or directory"),
        (127, ["no-such-program"], r"executable file not found in \$PATH"),
        (137, ["--memory=16m", "--memory-swap=16m", IMAGE, "tail", "/dev/zero"], ""),
        pytest.param(125, ["--cpuset-cpus=9999", IMAGE, "true"], "9999|cpuset", marks=requires("cgroup:cpuset")),
    ],
)
def test_exit_codes(podman: Podman, code: int, command: list[str], text: str) -> None:
    done = podman.run(*([] if IMAGE in command else [IMAGE]), *command)
    assert done.returncode == code or (code == 125 and done.returncode in (125, 126)), done.stderr
    assert re.search(text, done.stderr)
    assert podman("ps", "--all", "--quiet") == ""


# flags, a shell command, what it prints
FLAGS: dict[str, tuple[str, str, str]] = {
    "user": ("--user 1000:1000", "id -u; id -g", "1000\n1000"),
    "read-only": ("--read-only --tmpfs /scratch", "touch /scratch/x; touch /x 2>/dev/null || echo refused", "refused"),
    "cap-drop": ("--cap-drop all", "grep CapEff /proc/self/status | cut -f2", "0" * 16),
    "seccomp": ("", "grep Seccomp: /proc/self/status | cut -f2", "2"),
    "mapped ids": ("--uidmap 0:200000:65536", "cat /proc/self/uid_map | tr -s ' '", " 0 200000 65536"),
    "limits": ("--memory 32m --pids-limit 50", "cd /sys/fs/cgroup; cat pids/pids.max pids.max 2>/dev/null", "50"),
    "host's processes": ("--pid host", "cat /proc/1/comm", Path("/proc/1/comm").read_text().strip()),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(podman: Podman, case: str) -> None:
    flags, command, printed = FLAGS[case]
    done = podman.run(*flags.split(), IMAGE, "sh", "-c", command)
    assert (done.stdout.removesuffix("\n"), done.stderr) == (printed, "")


def test_exec(podman: Podman, box: str) -> None:
    done = podman.attempt("exec", "--user", "1000", "--workdir", "/tmp", box, "sh", "-c", "id -u; pwd; exit 5")
    assert (done.returncode, done.stdout) == (5, "1000\n/tmp\n")
    done = podman.attempt("exec", "--interactive", box, "cat", stdin="given\n")
    assert (done.returncode, done.stdout) == (0, "given\n")
    assert podman.attempt("exec", box, "no-such-program").returncode == 127
    assert podman.attempt("exec", box, "/etc/passwd").returncode == 126
    podman("exec", "--detach", box, "sh", "-c", "until test -e /tmp/go; do sleep 0.05; done; echo went >/tmp/went")
    podman("exec", box, "touch", "/tmp/go")
    podman("exec", box, "sh", "-c", "until test -s /tmp/went; do sleep 0.05; done")


def test_terminals(podman: Podman, name: str) -> None:
    run = podman.command(*podman.run_arguments("--name", name, "-it", IMAGE, "sh"))
    await_size = "while test \"$(stty size)\" != '{}'; do sleep 0.05; done; echo si''zed {}\n"
    with podman.removed(name):
        with Terminal(run, rows=30, columns=99, env=podman.environment) as terminal:
            terminal.read_until("# ")
            terminal.type(await_size.format("30 99", 1))
            terminal.read_until("sized 1")
            terminal.resize(40, 111)
            terminal.type(await_size.format("40 111", 2))
            terminal.read_until("sized 2")
            with Terminal(podman.command("exec", "-it", name, "sh"), env=podman.environment) as other:
                other.read_until("# ")
                other.type("tty; exit 7\n")
                other.read_until("/dev/pts/1")
                assert other.wait() == 7
            terminal.type("exit 6\n")
            assert terminal.wait() == 6


def test_signals_stop_and_logs(podman: Podman, box: str) -> None:
    podman("kill", "--signal", "HUP", box)
    podman.await_log(box, "hup")
    podman("stop", box)
    assert podman.inspect(box, "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert podman("logs", box) == "ready\nhup\nterm"
    podman("start", box)
    podman.await_log(box, "ready", times=2)
    podman("kill", box)
    assert podman("wait", box) == "137"


def test_stop_kills_what_does_not_end(podman: Podman, name: str) -> None:
    with podman.removed(name):
        podman.detached(name, IMAGE, "sleep", "1000")  # as pid 1 without a handler it ignores SIGTERM
        podman("stop", "--time", "1", name)
        assert podman.inspect(name, "{{.State.ExitCode}}") == "137"
        podman("restart", "--time", "0", name)
        assert podman.inspect(name, "{{.State.Running}}") == "true"


def test_pause_update_top_and_stats(podman: Podman, box: str) -> None:
    podman("pause", box)
    assert podman.inspect(box, "{{.State.Status}}") == "paused"
    assert podman.attempt("exec", box, "true").returncode != 0
    podman("unpause", box)
    podman("update", "--memory", "48m", "--cpus", "0.5", box)
    limit = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max"
    assert podman("exec", box, "sh", "-c", limit) == str(48 << 20)
    assert "sleep 1000" in podman("top", box, "args")
    row = podman("stats", "--no-stream", "--format", "{{.MemUsage}};{{.PIDs}}", box)
    assert re.fullmatch(r"[\d.]+[kM]B / .*;\d+", row)


def test_health(podman: Podman, name: str) -> None:
    with podman.removed(name):
        health = ("--health-cmd", "test -e /ok", "--health-interval", "disable")  # intervals are timers of systemd
        podman.detached(name, *health, IMAGE, "sleep", "1000")
        assert podman.attempt("healthcheck", "run", name).returncode == 1
        podman("exec", name, "touch", "/ok")
        podman("healthcheck", "run", name)


def test_restart_policy(podman: Podman, name: str) -> None:
    with podman.removed(name):
        podman.detached(name, "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo try; exit 4")
        podman.await_log(name, "try", times=3)
        podman.settle()
        assert podman.inspect(name, "{{.State.ExitCode}} {{.RestartCount}}") == "4 2"


def test_pod(podman: Podman, name: str) -> None:
    with podman.pod(name):
        podman("run", "--detach", "--pod", name, "--name", f"{name}-a", IMAGE, "sleep", "1000")
        shared = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"
        first = podman("exec", f"{name}-a", "sh", "-c", shared)
        second = podman("run", "--rm", "--pod", name, IMAGE, "sh", "-c", shared)
        assert first == second
        assert podman("pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}") == f"{name} Running 2"
        podman("pod", "pause", name)
        assert podman.inspect(f"{name}-a", "{{.State.Status}}") == "paused"
        podman("pod", "unpause", name)
        podman("pod", "stop", "--time", "0", name)
        assert podman.inspect(f"{name}-a", "{{.State.Status}}") == "exited"


def test_build(podman: Podman, name: str) -> None:
    podman.build(name)
    assert podman.run(f"localhost/{name}").stdout == "built by root\n"
    podman("rmi", f"localhost/{name}")
