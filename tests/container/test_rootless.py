"""An ordinary user's containers: in user namespaces that map the user alone, or what /etc/subuid grants beside."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import NEWER, OURS_ONLY, Box, Runtime
from tests.support import wait
from tests.support.agent import running
from tests.support.requires import requires

UID = 1  # daemon, whom every Debian has and who has nothing running
GRANTED = 300000
MS_BIND = 0x1000

pytestmark = requires("userns", "program:setpriv")

Mapping = tuple[int, int, int]
OWN: Mapping = (0, UID, 1)
MORE: Mapping = (1, GRANTED, 1000)


@pytest.fixture
def user(place: Path, runtime: Runtime) -> Runtime:
    """The runtime as that user calls it."""
    os.chmod(place, 0o711)
    os.chown(runtime.root, UID, UID)
    runtime.command = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *runtime.command]
    answer = runtime.run("--version")
    if answer.code != 0:
        pytest.skip(f"ordinary users cannot execute {runtime.command[-3]}: {answer.errors.strip()}")
    return runtime


@pytest.fixture
def box(user: Runtime, busybox: Path, new_id: Callable[[], str]) -> Box:
    """What ``spec --rootless`` writes."""
    made = Box(user, new_id(), busybox.parent)
    user("spec", "--rootless", cwd=_own_folder(busybox.parent / "spec"))
    made.spec = json.loads((busybox.parent / "spec" / "config.json").read_text())
    made.spec["process"] |= {"terminal": False, "args": ["sleep", "1000"]}
    os.chown(busybox.parent, UID, UID)
    return made


def _own_folder(folder: Path) -> Path:
    folder.mkdir()
    os.chown(folder, UID, UID)
    return folder


@pytest.fixture
def granted(place: Path) -> Iterator[None]:
    """A range of ids in /etc/subuid and /etc/subgid, which only this run of the tests sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = ("/etc/subuid", "/etc/subgid")
    file = place / "sub-ids"
    file.write_text(f"daemon:{GRANTED}:1000\n")
    for name in names:
        assert libc.mount(bytes(file), name.encode(), None, ctypes.c_ulong(MS_BIND), None) == 0, name
    yield
    for name in names:
        assert libc.umount2(name.encode(), 0) == 0


def map_ids(box: Box, *mappings: Mapping) -> None:
    entries = [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in mappings]
    box.spec["linux"] |= {"uidMappings": entries, "gidMappings": entries}


def shell(box: Box, script: str) -> None:
    box.spec["process"]["args"] = ["/bin/sh", "-c", script]


def output(box: Box, *verb: str) -> list[list[str]]:
    """The words of each line; what the runtime warns of does not matter here."""
    answer = box.runtime.run(*verb)
    assert answer.code == 0, answer
    return [line.split() for line in answer.output.splitlines()]


def test_a_container_of_one_id(box: Box) -> None:
    shell(box, "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups; touch /dev/shm/x && stat -c %u /dev/shm/x")
    box.write()
    found = output(box, "run", "--bundle", str(box.bundle), box.id)
    assert found == [["0"], ["0"], ["0", str(UID), "1"], ["deny"], ["0"]]


def test_its_exit_code_is_the_programs(box: Box) -> None:
    shell(box, "exit 7")
    box.write()
    assert box.runtime.run("run", "--bundle", str(box.bundle), box.id).code == 7


def test_cve_2014_8989_a_group_cannot_be_shed(box: Box, place: Path) -> None:
    """A file may be closed to a group and open to all others: who is in the group must stay in it."""
    secret = place / "secret"
    secret.write_text("for others")
    os.chown(secret, 0, 100)
    secret.chmod(0o604)
    box.runtime.command[box.runtime.command.index("--clear-groups")] = "--groups=100"
    (box.bundle / "rootfs/secret").touch()
    box.spec["mounts"].append({"destination": "/secret", "type": "bind", "source": str(secret), "options": ["bind"]})
    for kind in box.spec["process"]["capabilities"].values():
        kind += ["CAP_SETGID", "CAP_SETUID"]
    script = "id -G | wc -w; cat /secret; (echo allow > /proc/self/setgroups); su root -c 'cat /secret'"
    shell(box, f"exec 2>&1; {script}")
    box.write()
    answer = box.runtime.run("run", "--bundle", str(box.bundle), box.id)
    assert answer.output.startswith("2\n"), "the user is not in the group"
    assert "can't set groups: Operation not permitted" in answer.output
    assert "for others" not in answer.output
    assert answer.output.count("\n") == 4, answer


@requires("program:newuidmap")
def test_a_container_of_granted_ids(box: Box, granted: None) -> None:
    map_ids(box, OWN, MORE)
    shell(box, "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; touch /tmp/x; stat -c %u:%g /tmp/x")
    box.spec["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": []}
    box.spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
    box.write()
    *maps, groups, owner = output(box, "run", "--bundle", str(box.bundle), box.id)
    assert maps == [[str(number) for number in mapping] for mapping in (OWN, MORE) * 2]
    assert groups == ["allow"]
    assert owner == ["5:6"]


@requires("program:newuidmap")
def test_ids_that_were_not_granted_are_refused(box: Box, granted: None) -> None:
    map_ids(box, OWN, (1, GRANTED + 1000, 1))
    box.write()
    said = box.runtime.fails("run", "--bundle", str(box.bundle), box.id)
    assert "newgidmap" in said or "newuidmap" in said
    assert os.listdir(box.runtime.root) == []


@requires("program:newuidmap")
def test_the_life_of_a_container(box: Box, granted: None) -> None:
    map_ids(box, OWN, MORE)
    box.write()
    answer = box.runtime.run("create", "--bundle", str(box.bundle), box.id)
    assert answer.code == 0, answer
    assert box.status() == "created"
    box.runtime("start", box.id)
    state = box.state()
    assert state["status"] == "running"
    assert os.stat(f"/proc/{state['pid']}").st_uid == UID
    assert output(box, "exec", box.id, "id", "-u") == [["0"]]
    assert output(box, "exec", "--user", "1000:1000", box.id, "/bin/sh", "-c", "id -u; id -g") == [["1000"], ["1000"]]
    assert box.runtime.run("exec", box.id, "/bin/sh", "-c", "exit 3").code == 3
    box.runtime("kill", box.id, "KILL")
    wait.process_gone(state["pid"])
    assert box.status() == "stopped"
    box.runtime("delete", box.id)
    assert os.listdir(box.runtime.root) == []


def test_no_access_to_what_only_root_may_read(box: Box, place: Path) -> None:
    secret = place / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    shell(box, "cat /secret")
    box.spec["mounts"].append({"destination": "/secret", "type": "bind", "source": str(secret), "options": ["bind"]})
    (box.bundle / "rootfs" / "secret").touch()
    box.write()
    answer = box.runtime.run("run", "--bundle", str(box.bundle), box.id)
    assert answer.code == 1
    assert "Permission denied" in answer.errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"additionalGids": [5]}, "additional"),
        ({"uid": 5}, "map"),
    ],
    ids=["groups", "an id outside of the map"],
)
def test_what_takes_ids_that_are_not_there_is_refused(box: Box, change: dict[str, Any], words: str) -> None:
    box.spec["process"]["user"] |= change
    box.write()
    assert words in box.runtime.fails("run", "--bundle", str(box.bundle), box.id)
    assert os.listdir(box.runtime.root) == []


def test_without_a_user_namespace_it_is_refused(box: Box) -> None:
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "user"]
    map_ids(box)
    box.write()
    assert "user namespace" in box.runtime.fails("run", "--bundle", str(box.bundle), box.id)
    assert os.listdir(box.runtime.root) == []


@OURS_ONLY
@pytest.mark.parametrize("nnp", [False, True])
def test_seccomp_agent_of_the_calls_that_init_itself_makes(box: Box, place: Path, *, nnp: bool) -> None:
    """The listener has to be with the agent before any of them waits for an answer."""
    box.spec["process"]["noNewPrivileges"] = nnp
    names = ["execve", "openat", "open", "read", "close", "fcntl"]
    box.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": f"{place}/agent.sock",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    }
    with running(f"{place}/agent.sock") as agent:
        os.chown(f"{place}/agent.sock", UID, UID)
        box.start()
        agent.message()
        assert box.status() == "running"
        box.runtime("delete", "--force", box.id)


@OURS_ONLY
@pytest.mark.parametrize("nnp", [False, True])
def test_seccomp_agent(box: Box, place: Path, *, nnp: bool) -> None:
    """The user may not fetch the listener of a process that is not dumpable: it is sent."""
    box.spec["process"]["noNewPrivileges"] = nnp
    box.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": f"{place}/agent.sock",
        # read(2): the listener must not wait for an answer that init cannot read without the agent.
        "syscalls": [{"names": ["mkdir", "mkdirat", "read", "close"], "action": "SCMP_ACT_NOTIFY"}],
    }
    shell(box, "mkdir /tmp/x 2>&1; sleep 1000")
    with running(f"{place}/agent.sock") as agent:
        os.chown(f"{place}/agent.sock", UID, UID)
        box.start()
        assert agent.message()["pid"] == box.state()["pid"]
        assert "No medium found" in box.runtime("exec", box.id, "sh", "-c", "mkdir /tmp/x 2>&1; true")
        agent.message()


def test_exec_before_the_start(box: Box) -> None:
    box.create()
    assert box.runtime("exec", box.id, "echo", "inside") == "inside\n"
    assert box.status() == "created"
    box.runtime("start", box.id)
    assert box.status() == "running"


@NEWER  # runc 1.1 wants maps all the same
def test_a_container_without_cgroup_in_the_pid_namespace_of_another(box: Box, new_id: Callable[[], str]) -> None:
    box.start()
    other = Box(box.runtime, new_id(), box.bundle)
    other.spec = box.spec
    linux = other.spec["linux"]
    for kind in ("user", "pid"):
        linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != kind]
        linux["namespaces"].append({"type": kind, "path": f"/proc/{box.state()['pid']}/ns/{kind}"})
    del linux["uidMappings"], linux["gidMappings"]
    other.write()
    answer = other.runtime.run("create", "--bundle", str(other.bundle), other.id)  # runc warns
    assert answer.code == 0, answer
    pid = other.state()["pid"]
    assert other.runtime.run("kill", other.id, "KILL").code == 0  # here, too
    wait.process_gone(pid)
    assert other.runtime.run("delete", other.id).code == 0
    assert box.status() == "running"


@NEWER  # runc 1.1 knows no time namespaces
@requires("namespace:time")
def test_time_offsets(box: Box) -> None:
    box.spec["linux"]["namespaces"].append({"type": "time"})
    box.spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1 << 30}}
    box.spec["process"]["args"] = ["cat", "/proc/uptime"]
    box.write()
    assert float(box.runtime("run", "--bundle", str(box.bundle), box.id).split()[0]) > 1 << 30


@requires("cgroup-mode:hybrid")
def test_hierarchies_that_the_user_has_no_part_of_are_seen_as_they_are(box: Box) -> None:
    box.spec["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    box.spec["process"]["args"] = ["cat", "/sys/fs/cgroup/pids/tasks"]
    box.write()
    assert box.runtime("run", "--bundle", str(box.bundle), box.id).strip()


@pytest.fixture
def delegated(new_id: Callable[[], str]) -> Iterator[str]:
    """The path of a cgroup in every hierarchy of v1 that belongs to the user."""
    name = new_id()
    folders = [path / name for path in Path("/sys/fs/cgroup").iterdir() if (path / "tasks").exists()]
    for folder in folders:
        folder.mkdir()
        for path in (folder, folder / "tasks", folder / "cgroup.procs"):
            os.chown(path, UID, UID)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (folder / file).exists():
                (folder / file).write_text((folder.parent / file).read_text())
    yield f"/{name}"
    for folder in folders:
        folder.rmdir()


@NEWER  # runc 1.1 warns
@requires("cgroup-mode:hybrid", "cgroup:pids", "cgroup:devices")
def test_limits_in_a_v1_cgroup_that_belongs_to_the_user(box: Box, delegated: str) -> None:
    """Its device rules, which only root may set, are no error; nor is the unified hierarchy, which is root's."""
    box.spec["linux"] |= {
        "cgroupsPath": f"{delegated}/box",
        "resources": {"pids": {"limit": 20}, "devices": [{"allow": False, "access": "rwm"}]},
    }
    box.start()
    folder = Path(f"/sys/fs/cgroup/pids{delegated}/box")
    assert (folder / "pids.max").read_text() == "20\n"
    assert (folder / "cgroup.procs").read_text() == f"{box.state()['pid']}\n"
    box.runtime("update", "--pids-limit", "30", box.id)
    assert (folder / "pids.max").read_text() == "30\n"
    box.runtime("pause", box.id)
    assert box.status() == "paused"
    box.runtime("delete", "--force", box.id)
    assert not folder.exists()


@requires("cgroup-mode:hybrid", "cgroup:pids")
def test_cve_2023_25809_what_belongs_to_the_user_is_not_to_be_written(box: Box, delegated: str) -> None:
    """In the host's cgroup namespace all of the hierarchy can be seen; a part of it the user may write to, outside."""
    box.spec["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    shell(
        box,
        f"for d in /sys/fs/cgroup/*; do test -e $d{delegated} || continue; echo seen; mkdir $d{delegated}/made;"
        f"echo $$ > $d{delegated}/cgroup.procs; done",
    )
    box.write()
    answer = box.runtime.run("run", "--bundle", str(box.bundle), box.id)
    assert "seen" in answer.output, answer
    found = [path.name for path in Path("/sys/fs/cgroup").glob(f"*{delegated}/*/")]
    assert found == []
    assert answer.errors.count("Read-only file system") == 2 * answer.output.count("seen")
