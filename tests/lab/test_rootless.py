"""Containers of a user who is not root: with a part of cgroup v2 that was delegated to the user, and without one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import IS_OURS, Answer, Runtime
from tests.support.bundle import make_bundle
from tests.support.requires import requires
from tests.support.session import TAG
from tests.support.specs import runc_default

pytestmark = [pytest.mark.lab, requires("cgroup-mode:v2", "userns", "program:setpriv")]

UID = 1717
ROOT = Path("/sys/fs/cgroup")


class User:
    """Runs the runtime as a user, from a cgroup. ``home`` is the user's own part of the hierarchy."""

    def __init__(self, folder: Path, rootfs: Path, home: Path) -> None:
        self.home = home
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        self._rootfs = rootfs
        state = folder / "state"
        state.mkdir()
        os.chown(state, UID, UID)
        self._runtime = Runtime(state)
        self.cgroup = ROOT

    def spec(self, *args: str, **resources: Any) -> None:
        """A single id is mapped, which needs nobody's help."""
        document = runc_default(*args)
        document["linux"]["namespaces"] = [
            *(entry for entry in document["linux"]["namespaces"] if entry["type"] != "network"),
            {"type": "user"},
        ]
        for kind, own in (("uidMappings", UID), ("gidMappings", UID)):
            document["linux"][kind] = [{"containerID": 0, "hostID": own, "size": 1}]
        document["linux"]["resources"] |= resources
        document["mounts"] = [entry for entry in document["mounts"] if entry["destination"] not in UNMOUNTABLE]
        for entry in document["mounts"]:
            entry["options"] = [option for option in entry.get("options", ()) if option != "gid=5"]
        make_bundle(self.bundle, document, self._rootfs)

    def path(self, path: str) -> None:
        config = self.bundle / "config.json"
        config.write_text(config.read_text().replace('"linux": {', f'"linux": {{"cgroupsPath": "{path}", ', 1))

    def call(self, *args: str) -> Answer:
        enter = f'echo 0 >{self.cgroup}/cgroup.procs; exec setpriv --reuid {UID} --regid {UID} --clear-groups "$@"'
        return self._runtime.run(*args, command=["sh", "-c", enter, "sh", *self._runtime.command])

    def __call__(self, *args: str) -> str:
        answer = self.call(*args)
        assert (answer.code, answer.errors) == (0, ""), f"{args}: {answer}"
        return answer.output


UNMOUNTABLE = ("/sys", "/sys/fs/cgroup")  # with the host's network namespace sysfs cannot be mounted


@pytest.fixture
def user(place: Path, busybox: Path) -> Iterator[User]:
    for path in (busybox, *busybox.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    home = ROOT / TAG
    home.mkdir()
    made = User(place, busybox, home)
    yield made
    made.call("delete", "--force", "c")
    for folder in sorted(home.glob("*/"), reverse=True):
        folder.rmdir()
    home.rmdir()


@pytest.fixture
def delegated(user: User) -> User:
    """As a service manager does it: the folder and the files that /sys/kernel/cgroup/delegate names."""
    own = user.home / "own"
    own.mkdir()
    for folder in (user.home, own):
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(folder / name, UID, UID)
    user.cgroup = own
    return user


def test_limits_are_in_force_in_a_delegated_part(delegated: User) -> None:
    memory = {"limit": 16 << 20, "swap": 16 << 20}
    delegated.spec("sleep", "1000", memory=memory, pids={"limit": 25}, cpu={"shares": 512})
    delegated("run", "--detach", "--bundle", str(delegated.bundle), "c")
    folder = delegated.home / "c"
    assert [(folder / file).read_text() for file in ("memory.max", "pids.max", "cpu.weight")] == [
        "16777216\n",
        "25\n",
        "59\n",
    ]
    assert delegated.call("exec", "c", "tail", "/dev/zero").code == 137
    delegated("pause", "c")
    assert (folder / "cgroup.freeze").read_text() == "1\n"
    delegated("resume", "c")
    delegated("update", "--pids-limit", "7", "c")
    assert (folder / "pids.max").read_text() == "7\n"
    assert '"pids":{"current":1,"limit":7}' in delegated("events", "--stats", "c")
    delegated("delete", "--force", "c")
    assert not folder.exists()


def test_without_a_delegated_part_and_limits_there_is_no_cgroup(user: User) -> None:
    user.spec("sleep", "1000")
    user("run", "--detach", "--bundle", str(user.bundle), "c")
    assert list(user.home.glob("*/")) == []
    said = user.call("pause", "c").errors
    assert ("the container has no cgroup" if IS_OURS else "freezer not supported") in said
    assert user("exec", "c", "cat", "/proc/self/cgroup") == "0::/\n"


@pytest.mark.parametrize("resources", [{"memory": {"limit": 16 << 20}}, {"unified": {"pids.max": "3"}}])
def test_limits_without_a_delegated_part_are_refused(user: User, resources: dict[str, Any]) -> None:
    user.spec("true", **resources)
    answer = user.call("run", "--bundle", str(user.bundle), "c")
    assert answer.code == 1
    if IS_OURS or "memory" in resources:
        assert "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: " in answer.errors


def test_a_cgroup_of_others_is_refused(user: User) -> None:
    user.spec("true")
    user.path(f"/{TAG}/x")
    answer = user.call("run", "--bundle", str(user.bundle), "c")
    assert answer.code == 1
    assert f"mkdir {user.home}/x: permission denied" in answer.errors


def test_an_exec_from_outside_stays_outside(delegated: User) -> None:
    delegated.spec("sleep", "1000")
    delegated("run", "--detach", "--bundle", str(delegated.bundle), "c")
    delegated.cgroup = ROOT / "init"
    assert delegated("exec", "c", "cat", "/proc/self/cgroup") == "0::/init\n"
    assert len((delegated.home / "c" / "cgroup.procs").read_text().split()) == 1


def test_a_container_made_from_outside_is_refused(delegated: User) -> None:
    delegated.spec("true")
    delegated.path(f"/{TAG}/c")
    delegated.cgroup = ROOT / "init"
    answer = delegated.call("run", "--bundle", str(delegated.bundle), "c")
    assert answer.code == 1
    assert "permission denied" in answer.errors
    assert not (delegated.home / "c").exists()


CGROUP = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}


@pytest.mark.parametrize("own", [True, False], ids=["own namespace", "the host's"])
def test_cve_2023_25809_what_was_delegated_cannot_be_written_to(delegated: User, own: bool) -> None:  # noqa: FBT001
    """The user may write to it outside, and so might root of the container where it is bound for want of a mount."""
    folders = f"/sys/fs/cgroup /sys/fs/cgroup/{TAG} /sys/fs/cgroup/{TAG}/c"
    script = f"for d in {folders}; do mkdir $d/made; done 2>&1; ls /sys/fs/cgroup"
    delegated.spec("sh", "-c", script)
    config = delegated.bundle / "config.json"
    document = json.loads(config.read_text())
    document["mounts"] += [
        {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro", "nosuid"]}, CGROUP
    ]  # fmt: skip
    namespaces = [entry for entry in document["linux"]["namespaces"] if entry["type"] != "cgroup"]
    document["linux"]["namespaces"] = [*namespaces, {"type": "cgroup"}] if own else namespaces
    config.write_text(json.dumps(document))
    answer = delegated.call("run", "--bundle", str(delegated.bundle), "c")
    assert answer.code == 0, answer
    assert "Read-only file system" in answer.output
    assert not list(delegated.home.rglob("made"))
    assert (TAG in answer.output.splitlines()) != own
