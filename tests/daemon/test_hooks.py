"""The six hooks: where and when each runs, with what; and what follows when one fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from shimd.api.containerd import task_v3_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.daemon.sidebyside import run_with_runc, run_with_shimd, tidy
from tests.support import wait
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.rootfs import busybox_rootfs
from tests.support.specs import runc_default

Spec = dict[str, Any]
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
PATH = "PATH=/bin:/usr/bin"


class Line(NamedTuple):
    """What one hook has told, by the names in its script."""

    kind: str
    state: dict[str, Any]
    environment: str
    cwd: str
    namespaces: str
    in_container: bool


def telling(kind: str, log: Path) -> Spec:
    """A hook that appends a line to ``log``; startContainer's path is the container's own."""
    script = (
        f'log={log}; test -d "${{log%/*}}" || log=/tmp/log; IFS= read -r state;'
        " printf '%s|%s|%s|%s|%s|%s\\n' $0 \"$state\" \"$(env | grep -v -E '^(PWD|SHLVL|_|OLDPWD)=' | tr '\\n' ' ')\""
        ' "$PWD" "$(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/pid)"'
        " $(test -e /bin/busybox.marker && echo yes || echo no) >>$log"
    )
    return {"path": "/bin/sh", "args": ["sh", "-c", script, kind], "env": [PATH, f"HOOK={kind}"]}


def lines(log: Path) -> list[Line]:
    found = []
    for text in log.read_text().splitlines():
        kind, state, environment, cwd, namespaces, inside = text.split("|")
        found.append(Line(kind, json.loads(state), environment, cwd, namespaces, inside == "yes"))
    return found


def spec_with_hooks(rootfs: Path) -> Spec:
    log = rootfs / "tmp/log"
    (rootfs / "bin/busybox.marker").touch()
    # The program waits for poststart, which nothing else orders after its beginning.
    spec = runc_default(*shell("until grep -q ^poststart /tmp/log; do usleep 10000; done"))
    spec["root"]["readonly"] = False
    spec["hooks"] = {kind: [telling(kind, log)] for kind in KINDS}
    spec["hooks"]["createRuntime"].append(telling("createRuntime", log))
    spec["annotations"] = {"org.example.key": 'value with "quotes" and ü'}
    return spec


def told(line: Line) -> tuple[object, ...]:
    state = {**line.state, "pid": line.state.get("pid", 0) > 0, "bundle": os.path.basename(line.state["bundle"])}
    state.pop("ociVersion")
    cwd = os.path.basename(line.cwd)
    return line.kind, tuple(sorted((key, str(value)) for key, value in state.items())), line.environment, cwd


def test_all_kinds(client: Client, bundle: MakeBundle, place: Path, container_id: str) -> None:
    rootfs = busybox_rootfs(place / "rootfs")
    folder = bundle(spec_with_hooks(rootfs), rootfs)
    assert run_with_shimd(client, folder, container_id) == ("", 0)
    found = lines(rootfs / "tmp/log")
    assert [line.kind for line in found] == [*KINDS[:2], "createRuntime", *KINDS[2:]]
    assert [line.state["status"] for line in found] == [
        *["creating"] * 4, "created", "running", "stopped",
    ]  # fmt: skip
    assert [tidy(line.namespaces) for line in found] == [
        *[" ".join(f"{kind} of the host" for kind in ("mnt", "net", "pid"))] * 3,
        *[" ".join(f"{kind} of the container" for kind in ("mnt", "net", "pid"))] * 2,
        *[" ".join(f"{kind} of the host" for kind in ("mnt", "net", "pid"))] * 2,
    ]
    assert [line.in_container for line in found] == [False, False, False, False, True, False, False]
    outside, inside = str(folder), str(rootfs)
    assert [line.cwd for line in found] == [outside, outside, outside, inside, "/", outside, outside]
    for line in found:
        assert sorted(line.environment.split()) == [f"HOOK={line.kind}", PATH]
        assert line.state["id"] == container_id
        assert line.state["bundle"] == str(folder)
        assert line.state["annotations"] == {"org.example.key": 'value with "quotes" and ü'}
    pids = {line.kind: line.state.get("pid", 0) for line in found}
    assert pids["prestart"] == pids["createRuntime"] == pids["poststart"] > 1
    assert pids["poststop"] == 0


@requires("program:runc")
def test_as_under_runc(client: Client, bundle: MakeBundle, place: Path, container_id: str) -> None:
    for name in ("ours", "theirs"):
        (place / name).mkdir(mode=0o755)
    ours, theirs = (busybox_rootfs(place / name / "rootfs") for name in ("ours", "theirs"))
    assert run_with_shimd(client, bundle(spec_with_hooks(ours), ours), container_id).code == 0
    assert run_with_runc(bundle(spec_with_hooks(theirs), theirs), container_id).code == 0
    found = [str(told(line)) for line in lines(ours / "tmp/log")]
    expected = [str(told(line)).replace("bundle2", "bundle1") for line in lines(theirs / "tmp/log")]
    # runc 1.1 runs poststart before it lets go of the program: out of turn, and in another state.
    assert sorted(found) == sorted(
        line.replace("'created'", "'running'") if "'poststart'" in line else line for line in expected
    )


@pytest.fixture
def hooked(box: MakeBox) -> Callable[..., Box]:
    def make(kind: str, script: str, *, timeout: int | None = None, also: str = "") -> Box:
        spec = runc_default("sleep", "1000")
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": [PATH]}
        spec["hooks"] = {kind: [hook if timeout is None else {**hook, "timeout": timeout}]}
        if also:
            spec["hooks"]["poststop"] = [{"path": "/bin/touch", "args": ["touch", also]}]
        return box(spec=spec)

    return make


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize(
    ("script", "timeout", "words"),
    [
        ("echo said; echo so >&2; exit 3", None, "exit status 3"),
        ("kill -9 $$", None, "signal"),
        ("exec sleep 1000", 1, "1"),
    ],
    ids=["exit", "signal", "time-out"],
)
def test_failure_before_the_container_is_made(
    hooked: Callable[..., Box], place: Path, kind: str, script: str, timeout: int | None, words: str
) -> None:
    b = hooked(kind, script, timeout=timeout, also=str(place / "taken back"))
    with pytest.raises(grpc.RpcError, match=f"error running {kind} hook #0: .*{words}"):
        b.make()
    with refused("NOT_FOUND"):
        b.state()
    assert (place / "taken back").exists()


def test_output_of_a_failed_hook_is_told(hooked: Callable[..., Box]) -> None:
    b = hooked("createRuntime", "echo said; echo so >&2; exit 3")
    with refused("UNKNOWN", "said"):
        b.make()


def test_failure_of_start_container(hooked: Callable[..., Box]) -> None:
    b = hooked("startContainer", "exit 3")
    b.make()
    with refused("UNKNOWN", "error running startContainer hook #0"):
        b.start()
    b.wait()
    assert b.status() == "STOPPED"
    b.delete()


def test_failure_of_poststart_ends_the_container(hooked: Callable[..., Box]) -> None:
    b = hooked("poststart", "exit 3")
    b.make()
    with refused("UNKNOWN", "error running poststart hook #0"):
        b.start()
    assert b.wait() == 137
    b.delete()


def test_failure_of_poststop_changes_nothing(hooked: Callable[..., Box]) -> None:
    b = hooked("poststop", "exit 3")
    b.make()
    b.start()
    b.kill()
    b.wait()
    b.delete()
    with refused("NOT_FOUND"):
        b.state()


def test_hook_that_leaves_a_process_is_not_waited_for(hooked: Callable[..., Box], place: Path) -> None:
    log = place / "pid"
    b = hooked("createRuntime", f"sleep 1000 & echo $! >{log}")
    b.make()
    left = int(log.read_text())
    os.kill(left, 9)
    wait.process_gone(left)
    b.delete()


def test_long_hook_does_not_hold_up_others(hooked: Callable[..., Box], box: MakeBox, place: Path) -> None:
    gate = place / "gate"
    os.mkfifo(gate)
    slow = hooked("createRuntime", f"read x <{gate}")
    making = slow.task.Create.future(api.CreateTaskRequest(id=slow.id, bundle=str(slow.bundle)))
    other = box("true")
    other.make()
    other.start()
    assert other.wait() == 0
    assert not making.done()
    gate.write_text("go\n")
    assert making.result().pid > 0
