"""Containers in classes of Intel RDT. A hierarchy of cgroup v1 plays resctrl: its directories have tasks files, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import FailedPrecondition, InvalidSpec, RuntimeFailure
from shimd.runtime import rdt
from tests.kernel.attack import shell, small_rootfs
from tests.kernel.runtime_rig import Rig, rig_with
from tests.support.requires import requires

TREE = Path("/sys/fs/cgroup/systemd")

pytestmark = requires(f"file:{TREE}/tasks")


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    small_rootfs(place / "rootfs")
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def root(container_id: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In the place of resctrl."""
    folder = TREE / f"{container_id}-rdt"
    folder.mkdir()
    monkeypatch.setattr(rdt, "find_root", lambda: str(folder))
    yield folder
    folder.rmdir()


def in_class(**fields: Any) -> dict[str, Any]:
    spec = shell("exec sleep 1000")
    spec["linux"]["intelRdt"] = fields
    return spec


def tasks(folder: Path) -> list[str]:
    return (folder / "tasks").read_text().split()


def test_a_class_of_the_container(rig: Rig, root: Path) -> None:
    container = rig.create(in_class(), gate=False)
    process = rig.exec(container, "sleep", "1000")
    assert tasks(root / rig.id) == [str(container.pid), str(process.pid)]
    assert container.state.intel_rdt_path == f"{root}/{rig.id}"
    rig.runtime.kill_exec(container, process, 9)
    rig.wait_exec(container, process)
    rig.end(container)
    assert not (root / rig.id).exists()


def test_a_class_that_the_administrator_made(rig: Rig, root: Path) -> None:
    (root / "gold").mkdir()
    container = rig.create(in_class(closID="gold"), gate=False)
    assert tasks(root / "gold") == [str(container.pid)]
    rig.end(container)
    (root / "gold").rmdir()


def test_a_create_that_fails_leaves_no_class(rig: Rig, root: Path) -> None:
    spec = in_class()
    spec["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})
    with pytest.raises(RuntimeFailure, match="nosuchfs"):
        rig.create(spec)
    assert not (root / rig.id).exists()
    with pytest.raises(RuntimeFailure, match="the class has to be there"):
        rig.create(in_class(closID="gold"))


def test_a_machine_without_rdt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdt, "find_root", lambda: "")
    with pytest.raises(InvalidSpec, match="/linux/intelRdt: intelRdt is specified in config, but"):
        rig.create(in_class())
    container = rig.create(shell("exec sleep 1000"), gate=False)
    with pytest.raises(FailedPrecondition, match=r"^Intel RDT/CAT: l3 cache schema is not enabled$"):
        rig.runtime.update_rdt(container, l3_cache_schema="L3:0=f")
    with pytest.raises(FailedPrecondition, match=r"^Intel RDT/MBA: memory bandwidth schema is not enabled$"):
        rig.runtime.update_rdt(container, mem_bw_schema="MB:0=10")
    rig.end(container)


def test_a_container_that_gets_a_class_later(rig: Rig, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written, unit tests look at; here it is where the processes go and what becomes of the class."""
    written: list[str] = []
    monkeypatch.setattr(rdt, "write_schemata", lambda group, root, lines: written.extend(lines))
    for feature in ("info", "info/L3", "info/MB"):
        (root / feature).mkdir()
    container = rig.create(shell("sleep 1000 & exec sleep 1000"), gate=False)
    rig.runtime.update_rdt(container, l3_cache_schema="L3:0=f")
    rig.runtime.update_rdt(container, mem_bw_schema="MB:0=10")
    assert written == ["L3:0=f", "MB:0=10"]
    assert str(container.pid) in tasks(root / rig.id)
    with rig.runtime.load(rig.id) as loaded:
        assert loaded.state.intel_rdt_owned
    rig.end(container)
    assert not (root / rig.id).exists()
    for feature in ("info/L3", "info/MB", "info"):
        os.rmdir(root / feature)
