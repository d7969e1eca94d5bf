"""A creator that is killed leaves nothing that the next program could not remove, whatever it was doing."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from shimd.keeper.client import KeeperClient
from shimd.linux.mount import is_mount_point
from shimd.runtime import creating
from shimd.runtime.container import CreateOptions, Runtime
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.launch import KeeperLauncher
from shimd.runtime.rootfs import RootfsMount
from shimd.runtime.status import Status
from tests.kernel.runtime_rig import Rig
from tests.support.bundle import make_bundle
from tests.support.specs import runc_default


def sleeper() -> dict[str, Any]:
    return runc_default("/bin/sleep", "1000", rootfs="../rootfs")


def test_what_a_creator_that_was_killed_has_left_can_be_removed(direct: Rig) -> None:
    spec = sleeper()
    spec["root"] = {"path": "rootfs"}
    spec["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]}]}
    make_bundle(direct.bundle, spec)
    options = CreateOptions(rootfs=(RootfsMount("bind", f"{direct.place}/rootfs", "", ("bind",)),))
    creator = os.fork()
    if creator == 0:
        direct.runtime.create(direct.id, str(direct.bundle), options=options)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(creator, 0)[1]) == signal.SIGKILL
    assert is_mount_point(str(direct.bundle / "rootfs"))
    assert direct.runtime.list() == ((), (), (direct.id,))
    direct.runtime.remove_stray(direct.id)
    assert not is_mount_point(str(direct.bundle / "rootfs"))
    assert direct.runtime.list() == ((), (), ())


@pytest.mark.parametrize("step", ["begin", "mount", "make_cgroup", "compile", "launch", "record", "on_sync", "finish"])
def test_a_creator_that_was_killed_after(rig: Rig, step: str) -> None:
    """What it has made by then is removed, and the id is free for the next."""
    spec = sleeper()
    spec["root"] = {"path": "rootfs"}
    make_bundle(rig.bundle, spec)
    creator = os.fork()
    if creator == 0:
        create_and_die(rig, step)
    assert os.WTERMSIG(os.waitpid(creator, 0)[1]) == signal.SIGKILL
    if step in ("on_sync", "finish"):  # the first sync point is "ready"
        container = rig.runtime.load(rig.id)
        assert rig.runtime.is_made(container) == (step == "finish")
        rig.runtime.delete(container)
    else:
        assert rig.runtime.list() == ((), (), (rig.id,))
        rig.runtime.remove_stray(rig.id)
        assert not is_mount_point(str(rig.bundle / "rootfs"))
    assert rig.run(runc_default("/bin/sh", "-c", "echo again; exit 7", rootfs="../rootfs")) == (7, "again\n")


def create_and_die(rig: Rig, step: str) -> None:
    """In a process of its own, with a connection of its own to the keeper."""
    try:
        if isinstance(rig.launcher, KeeperLauncher):
            launcher = KeeperLauncher(KeeperClient(rig.launcher.client.path))
            rig.runtime = Runtime(rig.runtime.env.host, launcher, rig.runtime.env.state_root)
        carry_out = getattr(creating._Creation, step)

        def carry_out_and_die(creation: Any, *arguments: Any) -> None:
            carry_out(creation, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(creating._Creation, step, carry_out_and_die)
        options = CreateOptions(rootfs=(RootfsMount("bind", f"{rig.place}/rootfs", "", ("bind",)),))
        rig.runtime.create(rig.id, str(rig.bundle), options=options)
    finally:
        os._exit(1)


def test_others_in_the_cgroup_of_a_creator_that_was_killed_live_on(direct: Rig) -> None:
    """It had not come as far as to be refused that cgroup."""
    spec = sleeper()
    spec["linux"]["cgroupsPath"] = f"/{direct.id}"
    other = direct.create(spec)
    second = Rig(direct.runtime.env.host, DirectLauncher(), direct.place, f"{direct.id}-second")
    make_bundle(second.bundle, spec)
    creator = os.fork()
    if creator == 0:
        create_and_die(second, "begin")
    os.waitpid(creator, 0)
    second.runtime.remove_stray(second.id)
    assert direct.runtime.status(other) is Status.CREATED
    direct.end(other)
