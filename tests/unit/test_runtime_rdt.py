"""Intel RDT on a folder that looks like resctrl, but for the files that the kernel puts into a new directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shimd.errors import InvalidSpec, RuntimeFailure
from shimd.oci.model import IntelRdt
from shimd.runtime import rdt

L3 = "L3:0=ff;1=0f"
MB = "MB:0=50;1=70"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("info/L3", "info/MB", "info/L3_MON", "mon_groups"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "info/last_cmd_status").write_text("ok\n")
    (tmp_path / "schemata").write_text("    L3:0=fffff;1=fffff\n    MB:0=100;1=100\n")
    return tmp_path


def a_class(root: Path, name: str, schemata: str = "") -> Path:
    """One that was there before."""
    (root / name / "mon_groups").mkdir(parents=True)
    (root / name / "schemata").write_text(schemata)
    return root / name


def make(root: Path, **fields: object) -> rdt.Group:
    wanted = IntelRdt(**fields)  # type: ignore[arg-type]
    rdt.check(wanted, str(root))
    return rdt.make(wanted, str(root), "ns@c1")


def remove(group: rdt.Group) -> None:
    """A directory of resctrl goes with the files in it."""
    rdt.remove(group, shutil.rmtree)


def test_a_class_of_the_container_goes_with_it(root: Path) -> None:
    group = make(root, schemata=("L2:0=f",), l3_cache_schema=f"{L3}\nMB:0=1", mem_bw_schema=MB)
    assert group == rdt.Group(f"{root}/ns@c1", "", owned=True)
    assert (root / "ns@c1/schemata").read_text() == f"{L3}\n{MB}\nL2:0=f\n"
    remove(group)
    assert not (root / "ns@c1").exists()
    remove(group)


def test_a_class_that_was_there_stays(root: Path) -> None:
    a_class(root, "ns@c1")
    group = make(root, l3_cache_schema=L3)
    assert not group.owned
    remove(group)
    assert (root / "ns@c1").exists()


def test_a_named_class_is_made_and_stays(root: Path) -> None:
    group = make(root, clos_id="gold", mem_bw_schema=MB)
    assert (root / "gold/schemata").read_text() == f"{MB}\n"
    remove(group)
    assert (root / "gold").exists()


def test_a_named_class_without_schemata_has_to_be_there(root: Path) -> None:
    with pytest.raises(RuntimeFailure, match=f"{root}/gold: the class has to be there when no schemata are given"):
        make(root, clos_id="gold")
    assert not (root / "gold").exists()
    a_class(root, "gold", "L3:0=1\n")
    assert make(root, clos_id="gold").path == f"{root}/gold"
    assert (root / "gold/schemata").read_text() == "L3:0=1\n"


def test_the_root_class(root: Path) -> None:
    group = make(root, clos_id="/", enable_monitoring=True)
    assert group == rdt.Group(str(root), f"{root}/mon_groups/ns@c1", owned=False)
    remove(group)
    assert (root / "mon_groups").is_dir()
    assert not (root / "mon_groups/ns@c1").exists()


def test_a_monitoring_group_goes_with_the_container(root: Path) -> None:
    a_class(root, "gold")
    group = make(root, clos_id="gold", enable_monitoring=True)
    assert (root / "gold/mon_groups/ns@c1").is_dir()
    remove(group)
    assert (root / "gold").is_dir()
    assert not (root / "gold/mon_groups/ns@c1").exists()


@pytest.mark.parametrize(
    "present", ["L3:1=f;0=0ff\nMB:1=70;0=50\n", "    MB:0= 50;1= 70\n    L3:0=000ff;1=0000f;2=3\n"]
)
def test_a_class_of_others_has_the_wanted_limits(root: Path, present: str) -> None:
    """However they are written."""
    a_class(root, "gold", present)
    make(root, clos_id="gold", l3_cache_schema=L3, mem_bw_schema=MB)


@pytest.mark.parametrize("present", ["L3:0=ff;1=1f\n", "L3:0=ff\n", "MB:0=50\n", ""])
def test_a_class_of_others_with_other_limits(root: Path, present: str) -> None:
    folder = a_class(root, "gold", present)
    with pytest.raises(RuntimeFailure, match=r"gold/schemata: L3 of [01] is not as in the configuration"):
        make(root, clos_id="gold", l3_cache_schema=L3)
    assert (folder / "schemata").read_text() == present


def test_what_the_machine_does_not_have(root: Path) -> None:
    with pytest.raises(InvalidSpec, match="/linux/intelRdt: intelRdt is specified in config, but Intel RDT is not en"):
        rdt.check(IntelRdt(), "")
    shutil.rmtree(root / "info")
    wanted = IntelRdt(l3_cache_schema=L3, mem_bw_schema=MB, enable_monitoring=True)
    with pytest.raises(InvalidSpec) as caught:
        rdt.check(wanted, str(root))
    assert [str(problem) for problem in caught.value.problems] == [
        "/linux/intelRdt/l3CacheSchema: specified in config, but Intel RDT/CAT is not enabled",
        "/linux/intelRdt/memBwSchema: specified in config, but Intel RDT/MBA is not enabled",
        "/linux/intelRdt/enableMonitoring: specified in config, but Intel RDT/monitoring is not enabled",
    ]


def test_the_kernel_says_why_it_refuses(root: Path) -> None:
    folder = a_class(root, "gold", L3)
    os.remove(folder / "schemata")
    (folder / "schemata").mkdir()
    (root / "info/last_cmd_status").write_text("Mask f0f has non-consecutive 1-bits\n")
    with pytest.raises(RuntimeFailure, match=r"write 'L2:0=f\\n' to .*: Is a directory, last_cmd_status: Mask f0f has"):
        rdt.write_schemata(rdt.Group(str(folder), "", owned=False), str(root), ["L2:0=f"])


def test_a_failure_leaves_no_class(root: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"make .*/mon_groups/ns@c1: No such file or directory"):
        make(root, enable_monitoring=True)
    assert not (root / "ns@c1").exists()
