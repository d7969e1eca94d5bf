"""Seccomp filters that let an agent decide: who gets the listener, when, and what if nobody wants it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.oci.spec import OCI_VERSION
from shimd.runtime import agent as handing_over
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.status import Status
from tests.kernel.attack import ODD, shell, small_rootfs
from tests.kernel.runtime_rig import Rig, rig_with
from tests.support.agent import Agent, running

MKDIR = ("mkdir", "mkdirat")
NO_MEDIUM = "mkdir: can't create directory '/tmp/x': No medium found\n"
# What init itself does behind the filter, or what its launcher could.
OWN = ("execve", "openat", "open", "read", "close", "fcntl", "sendmsg", "recvmsg", "accept4", "mmap", "brk", "prctl")


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    small_rootfs(place / "rootfs")
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def direct(place: Path, container_id: str) -> Rig:
    small_rootfs(place / "rootfs")
    return Rig(probe(), DirectLauncher(), place, container_id)


@pytest.fixture
def agent(place: Path) -> Iterator[Agent]:
    with running(str(place / "agent.sock")) as found:
        yield found
        assert found.end() == []


def notifying(place: Path, script: str, *calls: str, nnp: bool, **seccomp: Any) -> dict[str, Any]:
    spec = shell(script, noNewPrivileges=nnp)
    spec["annotations"] = {"org.example.key": "value"}
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(place / "agent.sock"),
        "listenerMetadata": "meta",
        "syscalls": [{"names": list(calls or MKDIR), "action": "SCMP_ACT_NOTIFY"}],
        **seccomp,
    }
    return spec


def state(rig: Rig, pid: int, status: str, init: int | None = None) -> dict[str, Any]:
    return {
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": "meta",
        "state": {
            "ociVersion": OCI_VERSION,
            "id": rig.id,
            "status": status,
            "pid": init or pid,
            "bundle": str(rig.bundle),
            "annotations": {"org.example.key": "value"},
        },
        "descriptors": 1,
    }


@pytest.mark.parametrize("nnp", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_the_agent_decides(rig: Rig, place: Path, agent: Agent, *, gate: bool, nnp: bool) -> None:
    """Without no_new_privs the filter is loaded while the container is created."""
    with rig.output() as output:
        spec = notifying(place, "mkdir /tmp/x; exec sleep 1000", nnp=nnp)
        container = rig.create(spec, stdio=output.stdio(), gate=gate)
        if gate:
            rig.runtime.start(container)
        assert agent.message() == state(rig, container.pid, "created" if gate and nnp else "creating")
        assert output.line() == NO_MEDIUM
        rig.end(container)


@pytest.mark.parametrize("nnp", [False, True])
def test_every_exec_has_a_listener_of_its_own(rig: Rig, place: Path, agent: Agent, *, nnp: bool) -> None:
    container = rig.create(notifying(place, "exec sleep 1000", nnp=nnp), gate=False)
    agent.message()
    for name in ("one", "two"):
        with rig.output() as output:
            process = rig.exec(container, "mkdir", "/tmp/x", name=name, stdio=output.stdio(), noNewPrivileges=nnp)
            assert agent.message() == state(rig, process.pid, "running", init=container.pid)
            assert (output.text(), rig.wait_exec(container, process)) == (NO_MEDIUM, 1)
    rig.end(container)


@pytest.mark.parametrize("nnp", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_calls_of_the_runtime_wait_for_the_agent(
    direct: Rig, place: Path, agent: Agent, *, gate: bool, nnp: bool
) -> None:
    spec = notifying(place, "echo ran", *OWN, nnp=nnp)
    assert direct.run(spec, gate=gate) == (0, "ran\n")
    agent.message()


def test_the_rest_of_the_filter_works_beside(direct: Rig, place: Path, agent: Agent) -> None:
    spec = notifying(place, "mkdir /tmp/x; rmdir /tmp; chmod 700 /tmp", nnp=True, flags=[])
    spec["linux"]["seccomp"]["syscalls"] += [
        {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"},
    ]
    code, text = direct.run(spec)
    assert text.startswith(NO_MEDIUM)
    assert "not found" in text or "Operation not supported" in text
    assert code == 128 + 31
    agent.message()


def test_without_notifications_nobody_is_told(direct: Rig, place: Path, agent: Agent) -> None:
    spec = notifying(place, "mkdir /tmp/x && echo made", nnp=True, syscalls=[])
    assert direct.run(spec) == (0, "made\n")


@pytest.mark.parametrize("path", ["@{place}", "{place}/" + "long" * 30 + "/agent.sock"], ids=["abstract", "long"])
def test_addresses(direct: Rig, place: Path, path: str) -> None:
    name = path.format(place=place)
    os.makedirs(os.path.dirname(name.removeprefix("@")), exist_ok=True)
    address = name
    if len(name) > 107:
        os.symlink(os.path.dirname(name), place / "short")
        address = f"{place}/short/agent.sock"
    with running(address) as found:
        assert direct.run(notifying(place, "mkdir /tmp/x; true", nnp=True, listenerPath=name)) == (0, NO_MEDIUM)
        found.message()


@pytest.mark.parametrize("nnp", [False, True])
def test_an_agent_that_dies(direct: Rig, place: Path, agent: Agent, *, nnp: bool) -> None:
    with direct.output() as output:
        script = "read line; mkdir /tmp/x"
        read_end, write_end = os.pipe()
        stdio = output.stdio()._replace(stdin=read_end)
        container = direct.create(notifying(place, script, nnp=nnp), stdio=stdio, gate=False)
        agent.message()
        agent.end()
        os.write(write_end, b"go\n")
        assert output.text() == "mkdir: can't create directory '/tmp/x': Function not implemented\n"
        for fd in (read_end, write_end):
            os.close(fd)
        direct.wait(container)
        direct.runtime.delete(container)


@pytest.mark.parametrize("nnp", [False, True])
def test_start_container_hooks_are_filtered_and_get_no_descriptor(
    direct: Rig, place: Path, agent: Agent, *, nnp: bool
) -> None:
    spec = notifying(place, "ls /proc/self/fd | wc -l; cat /tmp/found", nnp=nnp)
    script = "ls /proc/self/fd | wc -l >/tmp/found; mkdir /tmp/x 2>>/tmp/found; true"
    spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]}
    assert direct.run(spec) == (0, f"4\n4\n{NO_MEDIUM}")
    agent.message()


# ---- refusals --------------------------------------------------------------------------------------------------------

NO_AGENT = "failed to connect with seccomp agent"


def test_nobody_listens_while_it_is_created(rig: Rig, place: Path) -> None:
    with pytest.raises(RuntimeFailure, match=f"{NO_AGENT}.*{place}/agent.sock: No such file or directory"):
        rig.create(notifying(place, "true", nnp=False))
    assert not rig.state_dir().exists()
    with pytest.raises(RuntimeFailure, match=NO_AGENT):
        rig.create(notifying(place, "true", nnp=True), gate=False)
    assert not rig.state_dir().exists()


def test_nobody_listens_when_it_is_started(rig: Rig, place: Path) -> None:
    container = rig.create(notifying(place, "echo never", nnp=True))
    with pytest.raises(RuntimeFailure, match=NO_AGENT):
        rig.runtime.start(container)
    assert rig.wait(container) == 1
    assert rig.runtime.status(container) is Status.STOPPED
    rig.runtime.delete(container)


def test_nobody_listens_any_more_for_an_exec(direct: Rig, place: Path, agent: Agent) -> None:
    container = direct.create(notifying(place, "exec sleep 1000", nnp=True), gate=False)
    agent.message()
    agent.end()
    with pytest.raises(RuntimeFailure, match=f"{NO_AGENT}.*Connection refused"):
        direct.exec(container, "true", noNewPrivileges=True)
    direct.end(container)


def test_an_exec_that_would_wait_for_itself(direct: Rig, place: Path, agent: Agent) -> None:
    spec = notifying(place, "exec sleep 1000", nnp=False)
    for names in spec["process"]["capabilities"].values():
        names.append("CAP_SYS_PTRACE")
    container = direct.create(spec, gate=False)
    agent.message()
    with pytest.raises(InvalidSpec, match="/noNewPrivileges: is needed for a filter with SCMP_ACT_NOTIFY"):
        direct.exec(container, "true")
    process = direct.exec(container, "true", noNewPrivileges=True)
    agent.message()
    assert direct.wait_exec(container, process) == 0
    direct.end(container)


# ---- attacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ODD)
def test_something_else_in_the_place_of_the_agent(direct: Rig, place: Path, kind: str) -> None:
    """Refused, and not waited for."""
    ODD[kind](place / "agent.sock")
    with pytest.raises(RuntimeFailure, match=f"{NO_AGENT}.*(Connection refused|Too many levels)"):
        direct.create(notifying(place, "true", nnp=True), gate=False)


@pytest.mark.parametrize("full", ["connections", "message"])
def test_an_agent_that_does_not_listen(direct: Rig, place: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    monkeypatch.setattr(handing_over, "_TIMEOUT", struct.pack("=qq", 0, 200_000))
    spec = notifying(place, "true", nnp=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf, socket.socket(socket.AF_UNIX) as first:
        deaf.bind(str(place / "agent.sock"))
        deaf.listen(0)
        if full == "connections":
            first.connect(str(place / "agent.sock"))
        else:
            spec["annotations"]["big"] = "x" * 3_000_000
        with pytest.raises(RuntimeFailure, match=NO_AGENT):
            direct.create(spec, gate=False)
