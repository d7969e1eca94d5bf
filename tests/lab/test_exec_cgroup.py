"""The cgroup of an exec when init moves at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shimd.cgroups.v2 import V2Manager
from shimd.errors import RuntimeFailure
from shimd.host.facts import probe
from shimd.runtime.container import Container
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.model import ExecOptions
from tests.kernel.runtime_rig import Rig, keeper_launcher
from tests.support.specs import runc_default

pytestmark = pytest.mark.lab

SPLIT = (
    "cd /sys/fs/cgroup; mkdir init; echo 0 >init/cgroup.procs; echo +memory >cgroup.subtree_control; exec sleep 1000"
)


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, busybox: Path, container_id: str) -> Any:
    if request.param == "direct":
        yield Rig(probe(), DirectLauncher(), place, container_id)
    else:
        with keeper_launcher(place / "keeper") as launcher:
            yield Rig(probe(), launcher, place, container_id)


def split(rig: Rig) -> Container:
    """A container whose init has made a cgroup for itself below its own, in which none can be born any more."""
    spec = runc_default("/bin/sh", "-c", SPLIT, rootfs="../rootfs")
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    spec["mounts"] = [entry for entry in spec["mounts"] if entry["destination"] != "/sys/fs/cgroup"]
    spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": []})
    container = rig.create(spec)
    rig.runtime.start(container)
    control = Path(container.state.cgroup_paths[""], "cgroup.subtree_control")
    while control.read_text() != "memory\n":
        pass
    return container


def test_an_exec_follows_init(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    container = split(rig)
    looks = []
    really = V2Manager._exec_path

    def as_before(manager: V2Manager, init_pid: int, subs: Mapping[str, str]) -> str:
        """The first look is before init moves."""
        looks.append(init_pid)
        return manager._group.path if len(looks) == 1 else really(manager, init_pid, subs)

    monkeypatch.setattr(V2Manager, "_exec_path", as_before)
    with rig.output() as output:
        process = rig.exec(container, "cat", "/proc/self/cgroup", stdio=output.stdio())
        assert output.text() == "0::/init\n"
        assert rig.wait_exec(container, process) == 0
    assert len(looks) == 2
    rig.end(container)


def test_a_sub_cgroup_that_was_asked_for_is_not_left(rig: Rig) -> None:
    container = split(rig)
    Path(container.state.cgroup_paths[""], "sub/below").mkdir(parents=True)
    Path(container.state.cgroup_paths[""], "sub/cgroup.subtree_control").write_text("+memory")
    with pytest.raises(RuntimeFailure, match="Device or resource busy"):
        rig.exec(container, "true", options=ExecOptions(cgroup={"": "sub"}))
    rig.end(container)
