"""What an exec finds in a container, and each field of its process object: as under runc."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon import probes
from tests.daemon.boxes import Box, MakeBox
from tests.daemon.sidebyside import Run, difference
from tests.daemon.test_like_runc import docker_default
from tests.support import wait
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.rootfs import busybox_rootfs
from tests.support.specs import containerd_default, runc_default

Document = dict[str, Any]
Ask = Callable[..., tuple[Run, Run]]

pytestmark = requires("program:runc")


def exec_with_shimd(client: Any, container: str, process: Document) -> Run:
    first = api.ExecRequest(id=container, process=json.dumps(process).encode())
    events = list(client.runtime.Attach(iter([api.AttachRequest(exec=first)])))
    output = b"".join(event.output.data for event in events)
    return Run(output.decode(errors="replace"), events[-1].exited.exit_status)


def exec_with_runc(folder: Path, container: str, process: Document) -> Run:
    document = folder / "process.json"
    document.write_text(json.dumps(process))
    return _runc(folder, "exec", "--process", str(document), container, stdout=subprocess.PIPE)


def _runc(folder: Path, *args: str, stdout: int = subprocess.DEVNULL) -> Run:
    done = subprocess.run(
        ["runc", "--root", f"{folder}/runc", *args],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        timeout=wait.SECONDS,
        check=False,
    )
    return Run((done.stdout or b"").decode(errors="replace"), done.returncode)


@contextlib.contextmanager
def runc_container(folder: Path, container: str) -> Iterator[None]:
    assert _runc(folder, "run", "--detach", "--bundle", str(folder), container).code == 0
    try:
        yield
    finally:
        _runc(folder, "delete", "--force", container)


@pytest.fixture
def ask(client: Client, bundle: MakeBundle, box: MakeBox, place: Path, container_id: str) -> Iterator[Ask]:
    """Exec in a container of each runtime; both with the same config and cgroup path but for the last part."""
    with contextlib.ExitStack() as stack:

        def both(spec: Document, process: Document) -> tuple[Run, Run]:
            spec["process"]["args"] = ["/bin/sleep", "1000"]
            folder = bundle(spec, busybox_rootfs(place / "rootfs2"))
            theirs = json.loads((folder / "config.json").read_text())
            theirs["linux"]["cgroupsPath"] = f"/{container_id}"
            (folder / "config.json").write_text(json.dumps(theirs))
            ours = box(spec=spec)
            config = json.loads((ours.bundle / "config.json").read_text())
            config["linux"]["cgroupsPath"] = f"/{container_id}-2"
            (ours.bundle / "config.json").write_text(json.dumps(config))
            ours.make()
            ours.start()
            stack.enter_context(runc_container(folder, container_id))
            found = exec_with_shimd(client, ours.id, process)
            expected = exec_with_runc(folder, container_id, process)
            return found._replace(output=found.output.replace(f"{container_id}-2", container_id)), expected

        yield both


def shell_process(spec: Document, script: str, **fields: Any) -> Document:
    """The container's own with other arguments, as containerd's clients make it, and ``fields``."""
    process = {**spec["process"], "args": ["/bin/sh", "-c", f"exec 2>&1; {script}"], "terminal": False, **fields}
    return {key: value for key, value in process.items() if value is not None}


@pytest.mark.parametrize("make_spec", [runc_default, containerd_default, docker_default])
def test_what_an_exec_finds(ask: Ask, make_spec: Callable[..., Document]) -> None:
    spec = make_spec()
    # What is said of process 1 is not the exec's: its own instead, whose number is that of its group and session.
    script = probes.script().replace("/proc/1/", "/proc/$$/").replace("cd /proc/1;", "cd /proc/$$;")
    script = script.replace("cut -d' ' -f 4-8,", "cut -d' ' -f 4,7,8,")
    ours, theirs = ask(spec, shell_process(spec, script))
    assert (ours.code, theirs.code) == (0, 0)
    found, expected = (probes.answers(re.sub(r"/proc/\d+/", "/proc/N/", run.output)) for run in (ours, theirs))
    assert list(found) == list(probes.PROBES)
    report = "\n".join(f"{name}:\n{text}" for name in found if (text := difference(found[name], expected[name])))
    assert not report, report


STATUS = "grep -E '^(Cap|Groups|Uid|Gid|Umask|NoNew|Seccomp)' /proc/self/status"
ADMIN = {kind: ["CAP_SYS_ADMIN", "CAP_NET_RAW"] for kind in ("bounding", "effective", "permitted")}

FIELDS: dict[str, tuple[Document, str]] = {
    "user": ({"user": {"uid": 1000, "gid": 1001, "additionalGids": [7, 8]}}, f"id; {STATUS}; echo $HOME"),
    "environment": ({"env": ["PATH=/bin", "ONLY=this"]}, "env | sort"),
    "cwd": ({"cwd": "/home/user"}, "pwd"),
    "more capabilities": ({"capabilities": ADMIN}, STATUS),
    "fewer capabilities": ({"capabilities": {}}, STATUS),
    "the container's capabilities": ({"capabilities": None}, STATUS),
    "new privileges": ({"noNewPrivileges": False}, STATUS),
    "no new privileges": ({"noNewPrivileges": True}, STATUS),
    "limits": ({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]}, "cat /proc/self/limits"),
}


@pytest.mark.parametrize(("fields", "script"), FIELDS.values(), ids=FIELDS)
def test_field_of_an_exec(ask: Ask, fields: Document, script: str) -> None:
    spec = docker_default()
    ours, theirs = ask(spec, shell_process(spec, f"{script}; true", **fields))
    assert (ours.code, theirs.code) == (0, 0), (ours, theirs)
    report = difference(ours.output, theirs.output)
    assert not report, report


def _run(b: Box, script: str, **fields: Any) -> Run:
    spec = json.loads((b.bundle / "config.json").read_text())
    return exec_with_shimd(b.client, b.id, shell_process(spec, script, **fields))


@pytest.fixture
def running(box: MakeBox) -> Box:
    b = box("sleep", "1000")
    b.make()
    b.start()
    return b


def test_fields_that_runc_1_1_ignores(running: Box) -> None:
    run = _run(running, "umask; ulimit -n", user={"uid": 0, "gid": 0, "umask": 0o77}, rlimits=None)
    assert run.output.splitlines() == ["0077", "1024"]  # without limits of its own, those of the container


def test_fields_that_runc_1_1_does_not_know(running: Box) -> None:
    script = "cat /proc/$$/oom_score_adj; ionice; cut -d' ' -f41 /proc/$$/stat; grep Cpus_allowed_list /proc/$$/status"
    run = _run(
        running,
        script,
        oomScoreAdj=345,
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 7},
        scheduler={"policy": "SCHED_BATCH"},
        execCPUAffinity={"initial": "0", "final": "0"},
    )
    assert run.output.splitlines() == ["345", "best-effort: prio 7", "3", "Cpus_allowed_list:\t0"]


@requires("file:/proc/self/numa_maps")
def test_memory_policy_of_the_container(box: MakeBox) -> None:
    spec = runc_default("sleep", "1000")
    spec["linux"]["memoryPolicy"] = {"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}
    b = box(spec=spec)
    b.make()
    b.start()
    run = _run(b, "read address policy rest </proc/self/numa_maps; echo $policy")
    assert run == Run("prefer=relative:0\n", 0)


def test_user_namespace(box: MakeBox) -> None:
    spec = runc_default("sleep", "1000")
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"]
    b = box(spec=spec)
    b.make()
    b.start()
    uid, maps, namespace = _run(b, "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user").output.splitlines()
    assert uid == "0"
    assert maps.split() == ["0", "100000", "65536"]
    assert namespace == os.readlink(f"/proc/{b.state().pid}/ns/user")
    assert namespace != os.readlink("/proc/self/ns/user")
    assert _run(b, "id -u; id -G", user={"uid": 5, "gid": 6, "additionalGids": [7]}).output == "5\n6 7\n"
