"""Limits of cgroup v2, by what they do to the programs of containers of the daemon."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import cgroups_v2_pb2
from shimd.api.containerd import task_v3_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.lab.talking import Said, ask, run
from tests.support import wait
from tests.support.fifo import Fifos
from tests.support.requires import requires
from tests.support.session import TAG
from tests.support.specs import runc_default

pytestmark = [pytest.mark.lab, requires("cgroup-mode:v2")]

MEBIBYTE = 1 << 20
ROOT = Path("/sys/fs/cgroup")


def limited(*args: str, **resources: Any) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["linux"]["resources"] |= resources
    return spec


def folder(b: Box) -> Path:
    """Its cgroup, by its init."""
    return ROOT / Path(f"/proc/{b.state().pid}/cgroup").read_text().rstrip().removeprefix("0::/")


def figures(b: Box) -> Any:
    return cgroups_v2_pb2.Metrics.FromString(b.task.Stats(api.StatsRequest(id=b.id)).stats.value)


def update(b: Box, resources: Any) -> None:
    request = api.UpdateTaskRequest(id=b.id)
    request.resources.value = json.dumps(resources).encode()
    b.task.Update(request)


def started(b: Box) -> Box:
    b.make()
    b.start()
    return b


# ---- memory ----------------------------------------------------------------------------------------------------------

HOG = "tail /dev/zero"


def test_a_hog_is_killed_and_the_event_arrives(box: MakeBox, place: Path) -> None:
    b = box(spec=limited(*shell(f"exec {HOG}"), memory={"limit": 16 * MEBIBYTE, "swap": 16 * MEBIBYTE}))
    assert run(b, place) == ("", 137)
    assert b.topics() == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]


@pytest.mark.parametrize("group", ["0", "1"])
def test_an_oom_group_dies_as_a_whole(box: MakeBox, place: Path, group: str) -> None:
    memory = {"limit": 16 * MEBIBYTE, "swap": 16 * MEBIBYTE}
    b = started(box(spec=limited("sleep", "1000", memory=memory, unified={"memory.oom.group": group})))
    waiting = b.waiting()
    b.exec("hog", *shell(HOG))
    b.start("hog")
    assert b.wait("hog") == 137
    if group == "1":
        assert waiting.result().exit_status == 137
    else:
        assert ask(b, place, "true").code == 0
    assert b.topics().count("/tasks/oom") == 1


def writable(*args: str, **resources: Any) -> dict[str, Any]:
    """With a view of its cgroup in which it may make others, as an init of services does."""
    spec = limited(*args, **resources)
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    spec["mounts"] = [entry for entry in spec["mounts"] if entry["destination"] != "/sys/fs/cgroup"]
    spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": []})
    return spec


SUB = "cd /sys/fs/cgroup; mkdir init sub; echo 0 >init/cgroup.procs; echo +memory >cgroup.subtree_control"
HOG_BELOW = f"{SUB}; echo 8M >sub/memory.max; (echo 0 >sub/cgroup.procs; {HOG}); grep -h oom_kill sub/memory.events"


def test_a_kill_below_the_containers_cgroup_is_told(box: MakeBox, place: Path) -> None:
    b = box(spec=writable(*shell(HOG_BELOW)))
    said = run(b, place)
    assert "oom_kill 1" in said.output.splitlines(), said
    assert said.code == 0
    assert "/tasks/oom" in b.topics()


@pytest.fixture
def local_events() -> Iterator[None]:
    """memory.events as some systems have it: of a cgroup alone, not of those below."""
    subprocess.run(["mount", "-o", "remount,memory_localevents", ROOT], check=True)
    yield
    subprocess.run(["mount", "-o", "remount", ROOT], check=True)


def test_with_local_events_it_is_not_the_containers(box: MakeBox, place: Path, local_events: None) -> None:
    b = box(spec=writable(*shell(HOG_BELOW)))
    assert "oom_kill 1" in run(b, place).output.splitlines()
    assert "/tasks/oom" not in b.topics()


def test_a_limit_below_what_is_used_is_refused(box: MakeBox, place: Path) -> None:
    memory = {"limit": 64 * MEBIBYTE}
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; echo ready; sleep 1000"
    b = box(spec=limited(*shell(script), memory=memory))
    with Fifos(place / "fifos") as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        fifos.stdout_until(b"ready")
    with refused("UNKNOWN", "rejecting memory limit 1048576 < usage "):
        update(b, {"memory": {"limit": MEBIBYTE, "checkBeforeUpdate": True}})
    assert (folder(b) / "memory.max").read_text() == f"{64 * MEBIBYTE}\n"
    assert b.status() == "RUNNING"


# ---- pids and CPU ----------------------------------------------------------------------------------------------------


def test_a_fork_bomb_is_held(box: MakeBox) -> None:
    b = started(box(spec=limited(*shell("bomb() { bomb & bomb & wait; }; bomb"), pids={"limit": 30})))
    events = folder(b) / "pids.events"
    changes = _Changes(events)
    while events.read_text() == "max 0\n":
        changes.wait()
    changes.close()
    found = figures(b).pids
    assert (found.current <= 30, found.limit) == (True, 30)
    b.kill()
    b.wait()
    b.delete()


class _Changes:
    """Of a file of a cgroup that tells of them."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDONLY)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        os.read(self._fd, 100)

    def wait(self) -> None:
        assert self._poll.poll(wait.SECONDS * 1000)
        os.pread(self._fd, 100, 0)

    def close(self) -> None:
        os.close(self._fd)


def test_a_busy_program_is_throttled(box: MakeBox, place: Path) -> None:
    """100 periods of work at a fifth of the CPU take 5 times as long as they should."""
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000"
    b = box(spec=limited(*shell(script), cpu={"quota": 2000, "period": 10000}))
    with Fifos(place / "fifos") as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        fifos.stdout_until(b"done")
    cpu = figures(b).cpu
    assert cpu.nr_throttled > 0
    assert cpu.throttled_usec > 0
    assert cpu.nr_periods >= cpu.nr_throttled


def test_update_is_in_force_at_once(box: MakeBox, place: Path) -> None:
    b = started(box("sleep", "1000"))
    update(
        b,
        {
            "memory": {"limit": 64 * MEBIBYTE, "swap": 96 * MEBIBYTE, "reservation": MEBIBYTE},
            "cpu": {"shares": 512, "quota": 3000, "period": 20000},
            "pids": {"limit": 3},
            "unified": {"memory.high": str(32 * MEBIBYTE)},
        },
    )
    files = ("memory.max", "memory.swap.max", "memory.low", "memory.high", "cpu.weight", "cpu.max", "pids.max")
    expected = ["67108864", "33554432", "1048576", "33554432", "59", "3000 20000", "3"]
    assert [(folder(b) / file).read_text().strip() for file in files] == expected
    said = ask(b, place, "for i in 1 2 3; do sleep 9 >/dev/null 2>&1 & done")
    assert "can't fork" in said.output


# ---- devices ---------------------------------------------------------------------------------------------------------

KMSG = {"type": "c", "major": 1, "minor": 11}
TRY = "mknod /dev/shm/kmsg c 1 11 && head -c 0 /dev/shm/kmsg && echo read; : >>/dev/shm/kmsg && echo written"


@pytest.mark.parametrize(
    ("access", "read", "written"),
    [(None, False, False), ("r", True, False), ("w", False, True), ("rw", True, True)],
)
def test_devices(box: MakeBox, place: Path, access: str | None, *, read: bool, written: bool) -> None:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    if access:
        rules.append({"allow": True, "access": access, **KMSG})
    spec = limited(*shell(TRY), devices=rules)
    spec["process"]["capabilities"] = {
        kind: ["CAP_MKNOD", "CAP_DAC_OVERRIDE"] for kind in ("bounding", "effective", "permitted")
    }
    for mount in spec["mounts"]:
        if mount["destination"] == "/dev/shm":
            mount["options"].remove("nodev")
    said = run(box(spec=spec), place)
    assert ("read" in said.output.splitlines(), "written" in said.output.splitlines()) == (read, written), said
    assert ("Operation not permitted" in said.output) is not (read and written)


# ---- pause -----------------------------------------------------------------------------------------------------------


def test_a_pause_stops_a_counter(box: MakeBox, busybox: Path, place: Path) -> None:
    count = busybox / "count"
    count.touch()
    b = box(*shell("while :; do echo x >>/count; done"))
    spec = json.loads((b.bundle / "config.json").read_text())
    spec["root"]["readonly"] = False
    (b.bundle / "config.json").write_text(json.dumps(spec))
    started(b)
    _until_it_grows(b, place)
    b.pause()
    stopped = count.stat().st_size, figures(b).cpu.usage_usec
    assert run(box("true"), place) == Said("", 0)  # so long would it have gone on
    assert (count.stat().st_size, figures(b).cpu.usage_usec) == stopped
    b.resume()
    _until_it_grows(b, place)


def _until_it_grows(b: Box, place: Path) -> None:
    size = "stat -c %s /count"
    assert ask(b, place, f'was=$({size}); while [ "$({size})" = "$was" ]; do :; done') == ("", 0)


# ---- the cgroup itself -----------------------------------------------------------------------------------------------


def test_a_container_with_users_of_its_own_is_given_its_cgroup(box: MakeBox, place: Path) -> None:
    spec = writable(*shell(f"{SUB}; echo 1M >sub/memory.max; cat sub/memory.max; echo 1M >memory.max"))
    spec["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"] |= {"uidMappings": ids, "gidMappings": ids}
    said = run(box(spec=spec), place)
    assert said.output.splitlines()[0] == "1048576", said
    assert "can't create memory.max: Permission denied" in said.output


def test_exec_goes_where_init_went(box: MakeBox, place: Path) -> None:
    b = box(spec=writable(*shell(f"{SUB}; echo ready; sleep 1000")))
    with Fifos(place / "fifos") as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        fifos.stdout_until(b"ready")
    assert ask(b, place, "cat /proc/self/cgroup") == ("0::/init\n", 0)


def test_a_cgroup_in_use_is_refused(box: MakeBox) -> None:
    path = f"/{TAG}/used"
    spec = limited("sleep", "1000")
    spec["linux"]["cgroupsPath"] = path
    first = started(box(spec=spec))
    with refused("FAILED_PRECONDITION", "container's cgroup is not empty: 1 process(es) found"):
        box(spec=spec).make()
    first.kill()
    first.wait()
    first.delete()
    (ROOT / path[1:]).mkdir()
    (ROOT / path[1:] / "cgroup.freeze").write_text("1")
    with refused("FAILED_PRECONDITION", "container's cgroup unexpectedly frozen"):
        box(spec=spec).make()
    (ROOT / path[1:]).rmdir()
    (ROOT / TAG).rmdir()
