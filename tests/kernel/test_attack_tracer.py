"""A container with CAP_SYS_PTRACE and no user namespace of its own traces whoever comes in: not being dumpable is no
help then. So a process that joins it has nothing that the container has not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import RuntimeFailure
from shimd.linux import caps
from shimd.runtime import execing
from shimd.runtime.model import Container
from tests.kernel.attack import sleeper, small_rootfs
from tests.kernel.attacker import Victim, attacker
from tests.kernel.runtime_rig import Rig, rig_with
from tests.support import wait
from tests.support.requires import requires
from tests.support.specs import DOCKER_PROFILE, docker_default_seccomp

CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE")
MASK = f"{sum(1 << caps.NUMBERS[name] for name in CAPABILITIES):016x}"


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    small_rootfs(place / "rootfs")
    with rig_with(request.param, place, container_id) as made:
        yield made


def tracer(**process: Any) -> dict[str, Any]:
    spec = sleeper("CAP_SYS_PTRACE")
    spec["process"].update(process)
    return spec


@pytest.fixture
def running(rig: Rig) -> Iterator[Container]:
    container = rig.create(tracer(), gate=False)
    yield container
    rig.end(container)


def run(rig: Rig, container: Container, *args: str, **fields: Any) -> tuple[int, str]:
    try:
        return rig.output_of(container, *args, **fields)
    finally:
        rig.launcher.forget(f"{rig.id}/x")


def test_cve_2016_9962_there_is_nothing_to_gain(rig: Rig, running: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Victim]] = []
    states: list[tuple[list[str], set[str]]] = []

    def look(pid: int, _: object) -> None:
        seen.append(inside.round())
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        links = {os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
        states.append(([fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")], links))

    with attacker(running.pid, *CAPABILITIES) as inside:
        monkeypatch.setattr(execing, "set_rlimits", look)
        assert run(rig, running, "echo", "done") == (0, "done\n")
    assert [len(victims) for victims in seen] == [1], "one process, and it was seen"
    assert "ptrace" in seen[0][0].breaches, "the attack has lost its teeth"
    assert states[0][0] == [MASK, MASK, MASK, "0" * 16]
    assert states[0][1] <= {"/", "/dev/null", "pipe", "socket", "anon_inode"}, states


def test_an_exec_is_as_any_other(rig: Rig, running: Container) -> None:
    script = "pwd; ulimit -n; umask; set -- $(cat /proc/$$/stat); echo $1 $6"
    limits = [{"type": "RLIMIT_NOFILE", "soft": 40, "hard": 41}]
    code, text = run(
        rig, running, "/bin/sh", "-c", script, cwd="/home", rlimits=limits, user={"uid": 0, "gid": 0, "umask": 63}
    )
    assert (code, text.splitlines()[:3]) == (0, ["/home", "40", "0077"])
    pid, session = text.splitlines()[3].split()
    assert pid == session
    assert run(rig, running, "id", "-u", user={"uid": 5, "gid": 6}) == (0, "5\n")


def test_its_failures_say_why(rig: Rig, running: Container) -> None:
    with pytest.raises(RuntimeFailure, match=r"\(/cwd\): chdir to cwd .*No such file"):
        run(rig, running, "true", cwd="/nowhere")
    with pytest.raises(RuntimeFailure, match=r'\(/args\): exec: "nope": executable file not found'):
        run(rig, running, "nope")
    assert run(rig, running, "/bin/sh", "-c", "exit 7") == (7, "")


def test_a_terminal(rig: Rig, running: Container) -> None:
    process = rig.exec(running, "/bin/sh", "-c", "tty; : < /dev/tty && echo controls; exec sleep 1000", terminal=True)
    wait.read_until(process.console_fd, b"controls")
    os.write(process.console_fd, b"\x03")  # an interrupt of the line discipline: only for a controlling terminal
    assert rig.wait_exec(running, process) == 128 + signal.SIGINT
    rig.launcher.forget(f"{rig.id}/x")
    os.close(process.console_fd)


@requires(f"file:{DOCKER_PROFILE}")
@pytest.mark.parametrize("privileges", [True, False])
def test_with_a_filter(rig: Rig, privileges: bool) -> None:  # noqa: FBT001
    """Docker's refuses clone3; without no_new_privs it is loaded before the clone that makes the process."""
    spec = tracer(noNewPrivileges=not privileges)
    spec["linux"]["seccomp"] = docker_default_seccomp(CAPABILITIES)
    container = rig.create(spec, gate=False)
    code, text = run(rig, container, "grep", "Seccomp:", "/proc/self/status", noNewPrivileges=not privileges)
    rig.end(container)
    assert (code, text.split()) == (0, ["Seccomp:", "2"])
