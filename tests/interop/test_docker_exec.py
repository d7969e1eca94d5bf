"""``docker exec``, and looking at containers: top, stats, update, cp, diff, logs, attach; terminals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.docker_rig import IMAGE, Docker
from tests.support.requires import requires
from tests.support.terminal import Terminal


@pytest.fixture(scope="module")
def box(docker: Docker) -> Iterator[str]:
    """A running container that tests share."""
    with docker.removed("box"):
        docker.sleeper("box", "--env", "GIVEN=1", "--memory", "128m")
        yield "box"


# flags, command, exit code, standard output, in standard error
EXECS: dict[str, tuple[str, list[str], int, str, str]] = {
    "output": ("", ["sh", "-c", "echo out; echo err >&2; exit 5"], 5, "out\n", "err\n"),
    "environment": ("--env A=2", ["sh", "-c", "echo $A-$GIVEN"], 0, "2-1\n", ""),
    "user": ("--user 1000:1000", ["id"], 0, "uid=1000(user) gid=1000(user) groups=1000(user)\n", ""),
    "working directory": ("--workdir /home/user", ["pwd"], 0, "/home/user\n", ""),
    "missing": ("", ["no-such-program"], 126, "", "executable file not found in $PATH"),
    "missing path": ("", ["/no/such"], 126, "", "no such file or directory"),
    "not executable": ("", ["/etc/passwd"], 126, "", "permission denied"),
    "killed": ("", ["sh", "-c", "kill -KILL $$"], 137, "", ""),
    "no such folder": ("--workdir /no/such/folder", ["true"], 126, "", "no such file or directory"),
}


@pytest.mark.parametrize("case", EXECS)
def test_exec(docker: Docker, box: str, case: str) -> None:
    flags, command, code, output, error = EXECS[case]
    done = docker.attempt("exec", *flags.split(), box, *command)
    assert done.returncode == code, done
    if code == 126:
        # dockerd prints it on the stream that the program would have had.
        assert error.lower() in (done.stdout + done.stderr).lower()
    else:
        assert (done.stdout, done.stderr) == (output, error)


@pytest.mark.core
def test_exec_with_input(docker: Docker, box: str) -> None:
    done = docker.attempt("exec", "--interactive", box, "sh", "-c", "wc -c; exit 3", stdin="x" * 100_000)
    assert (done.returncode, done.stdout) == (3, "100000\n")


def test_exec_in_the_background(docker: Docker, box: str) -> None:
    docker("exec", "--detach", box, "sh", "-c", "until test -e /tmp/go; do sleep 0.05; done; echo went >/tmp/went")
    docker("exec", box, "touch", "/tmp/go")
    docker("exec", box, "sh", "-c", "until test -s /tmp/went; do sleep 0.05; done")


def test_exec_ends_with_its_container(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name)
        with Terminal(docker.command("exec", "-it", name, "sh"), env=docker.environment) as terminal:
            terminal.read_until("# ")
            docker("kill", name)
            assert terminal.wait() == 137
        refused = docker.attempt("exec", name, "true")
        assert refused.returncode == 1
        assert "is not running" in refused.stderr


@pytest.mark.core
def test_exec_on_a_terminal(docker: Docker, box: str) -> None:
    with Terminal(docker.command("exec", "-it", box, "sh"), rows=31, columns=97, env=docker.environment) as terminal:
        terminal.read_until("# ")
        terminal.type("while test \"$(stty size)\" != '31 97'; do sleep 0.05; done; echo fi''rst\n")
        terminal.read_until("first")
        terminal.resize(40, 111)
        terminal.type("while test \"$(stty size)\" != '40 111'; do sleep 0.05; done; echo re''sized; exit 7\n")
        terminal.read_until("resized")
        assert terminal.wait() == 7


@pytest.mark.core
def test_run_on_a_terminal(docker: Docker, name: str) -> None:
    command = docker.command(*docker.run_arguments("--rm", "--name", name, "-it", IMAGE, "sh"))
    with docker.removed(name), Terminal(command, rows=30, columns=99, env=docker.environment) as terminal:
        before = terminal.modes()
        terminal.read_until("# ")
        terminal.type("tty; test -t 0 && test -t 1 && test -t 2 && echo te''rminal\n")
        assert "/dev/pts/0" in terminal.read_until("terminal")
        terminal.type("while test \"$(stty size)\" != '30 99'; do sleep 0.05; done; echo fi''rst\n")
        terminal.read_until("first")
        terminal.resize(40, 111)
        terminal.type("while test \"$(stty size)\" != '40 111'; do sleep 0.05; done; echo re''sized\n")
        terminal.read_until("resized")
        terminal.type("sh -c 'echo sta''rted; exec sleep 1000'\n")
        terminal.read_until("started")
        terminal.type("\x03")
        terminal.read_until("# ")
        terminal.type("echo code $?; exit 6\n")
        terminal.read_until("code 130\r\n")
        assert terminal.wait() == 6
        assert terminal.modes() == before


def test_detach_from_a_terminal_and_attach_again(docker: Docker, name: str) -> None:
    command = docker.command(*docker.run_arguments("--name", name, "-it", IMAGE, "sh"))
    with docker.removed(name):
        with Terminal(command, env=docker.environment) as terminal:
            terminal.read_until("# ")
            terminal.type("\x10\x11")  # ctrl-p ctrl-q
            assert terminal.wait() == 0
        assert docker.inspect(name, "{{.State.Running}}") == "true"
        with Terminal(docker.command("attach", name), rows=41, columns=101, env=docker.environment) as terminal:
            terminal.type("while test \"$(stty size)\" != '41 101'; do sleep 0.05; done; echo ba''ck; exit 4\n")
            terminal.read_until("back")
            assert terminal.wait() == 4


def test_attach_sends_signals_on(docker: Docker, name: str) -> None:
    script = "trap 'echo interrupted; exit 2' INT; echo ready; while :; do sleep 1000 & wait $!; done"
    with docker.removed(name):
        with Terminal(
            docker.command(*docker.run_arguments("--name", name, IMAGE, "sh", "-c", script)), env=docker.environment
        ) as terminal:
            terminal.read_until("ready")
            terminal.type("\x03")
            terminal.read_until("interrupted")
            assert terminal.wait() == 2


@pytest.mark.core
def test_logs(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, IMAGE, "sh", "-c", "seq 1 1000; echo err >&2")
        docker("wait", name)
        done = docker.attempt("logs", "--follow", name)
        assert done.stdout == "".join(f"{number}\n" for number in range(1, 1001))
        assert done.stderr == "err\n"
        assert docker("logs", "--tail", "2", "--timestamps", name).endswith("Z 1000")


@requires("program:ps")
def test_top(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name)
        docker("exec", "--detach", name, "sleep", "777")
        lines = docker("top", name, "-o", "pid,args").splitlines()
        assert lines[0].split() == ["PID", "COMMAND"]
        assert str(docker.pid(name)) in [line.split()[0] for line in lines]
        assert any(line.endswith("sleep 777") for line in lines)


@pytest.mark.core
def test_stats(docker: Docker, box: str) -> None:
    row = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", box))
    assert row["Name"] == box
    assert re.fullmatch(r"[\d.]+[kKM]iB / 128MiB", row["MemUsage"])
    assert int(row["PIDs"]) >= 2
    assert re.fullmatch(r"[\d.]+%", row["CPUPerc"])


@pytest.mark.core
def test_update(docker: Docker, name: str) -> None:
    files = (
        "memory/memory.limit_in_bytes memory.max",
        "memory/memory.memsw.limit_in_bytes memory.swap.max",
        "cpu/cpu.cfs_quota_us cpu.max",
        "pids/pids.max pids.max",
        "cpuset/cpuset.cpus cpuset.cpus",
    )
    script = "cd /sys/fs/cgroup; " + "; ".join(f"cat {names} 2>/dev/null" for names in files) + "; true"
    with docker.removed(name):
        docker.sleeper(name, "--memory", "32m", "--memory-swap", "32m")
        changes = "--memory 64m --memory-swap 128m --cpus 0.25 --pids-limit 33 --cpuset-cpus 0 --restart no"
        docker("update", *changes.split(), name)
        values = [line.split()[0] for line in docker("exec", name, "sh", "-c", script).splitlines()]
        swap = (
            ["67108864"] if "memory.swap.max" in docker("exec", name, "ls", "/sys/fs/cgroup").split() else ["134217728"]
        )
        assert values == ["67108864", *swap, "25000", "33", "0"]
        assert docker.inspect(name, "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}") == "67108864 33"
        refused = docker.attempt("update", "--memory", "256m", name)  # above the limit with swap
        assert refused.returncode == 1
        docker("exec", name, "true")


def test_copy(docker: Docker, box: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("into the container\n")
    docker("cp", str(tmp_path / "in"), f"{box}:/home/in")
    assert docker("exec", box, "cat", "/home/in") == "into the container"
    docker("exec", box, "sh", "-c", "mkdir /home/d && echo out >/home/d/out")
    docker("cp", f"{box}:/home/d", str(tmp_path))
    assert (tmp_path / "d" / "out").read_text() == "out\n"
    assert {"A /home/in", "A /home/d", "A /home/d/out"} <= set(docker("diff", box).splitlines())
