from __future__ import annotations

import json

import pytest

from shimd.cgroups.place import (
    Group,
    clean,
    groups_from_state,
    groups_to_state,
    relative_path,
    sub_path,
    v1_groups,
    v2_group,
)
from shimd.cgroups.view import view_v1, view_v2
from shimd.errors import InternalError, InvalidArgument, InvalidSpec
from shimd.host.facts import Hierarchy


@pytest.mark.parametrize(
    ("cgroups_path", "own", "expected"),
    [
        ("/a/b", "/own", "a/b"),
        ("/a//b/./c/", "/own", "a/b/c"),
        ("/../../a", "/own", "a"),
        ("/a/../../../b", "/own", "b"),
        ("a", "/own", "own/a"),
        ("a", "/", "a"),
        ("../../a", "/own", "own/a"),
        ("a/../../b", "/own/x", "own/x/b"),
        ("", "/own", "own/id"),
        ("", "/", "id"),
    ],
)
def test_relative_path(cgroups_path: str, own: str, expected: str) -> None:
    assert relative_path(cgroups_path, "id", own) == expected


@pytest.mark.parametrize("path", ["/", "//", "/..", "/a/..", ".", "..", "a/..", "./"])
def test_root_and_own_cgroup_are_refused(path: str) -> None:
    with pytest.raises(InvalidSpec, match="/linux/cgroupsPath"):
        relative_path(path, "id", "/own")


@pytest.mark.parametrize("path", ["/a\nb", "/a\0b"])
def test_names_that_the_kernel_refuses(path: str) -> None:
    with pytest.raises(InvalidSpec, match="/linux/cgroupsPath"):
        relative_path(path, "id", "/own")


def test_clean() -> None:
    assert clean("") == clean("/") == clean("//..") == ""


CPU = Hierarchy(("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", "/")
MEMORY = Hierarchy(("memory",), "/sys/fs/cgroup/memory", "/own")
SYSTEMD = Hierarchy(("name=systemd",), "/sys/fs/cgroup/systemd", "/init")
UNIFIED = Hierarchy(("hugetlb",), "/sys/fs/cgroup/unified", "/u")


def test_v1_groups_follow_our_place_in_each_hierarchy() -> None:
    groups = v1_groups((CPU, MEMORY, SYSTEMD), UNIFIED, "", "id", "")
    assert [group.directory for group in groups] == [
        "/sys/fs/cgroup/cpu,cpuacct/id",
        "/sys/fs/cgroup/memory/own/id",
        "/sys/fs/cgroup/systemd/init/id",
        "/sys/fs/cgroup/unified/u/id",
    ]
    assert groups[-1].controllers == ()


def test_v1_groups_with_a_parent() -> None:
    assert {group.path for group in v1_groups((CPU, MEMORY), None, "x", "id", "/machine")} == {"machine/x"}
    assert {group.path for group in v1_groups((CPU, MEMORY), None, "/x", "id", "/machine")} == {"x"}


@pytest.mark.parametrize(
    ("own", "path", "expected"),
    [("/a/b", "", "a/id"), ("/a", "x", "x"), ("/", "x", "x"), ("/a/b", "/x", "x"), ("/a/b/c", "x/y", "a/b/x/y")],
)
def test_v2_group_is_beside_our_own(own: str, path: str, expected: str) -> None:
    assert v2_group(Hierarchy((), "/sys/fs/cgroup", own), path, "id", "").path == expected


def test_sub_path() -> None:
    group = Group((), "/m", "a/b")
    assert sub_path(group, "c/d") == sub_path(group, "/c//d/") == "a/b/c/d"
    assert sub_path(group, "/") == sub_path(group, ".") == "a/b"


@pytest.mark.parametrize("sub", ["..", "../x", "c/../../x", "c/.."])
def test_sub_paths_stay_below(sub: str) -> None:
    with pytest.raises(InvalidArgument, match="bad sub cgroup path"):
        sub_path(Group((), "/m", "a/b"), sub)


def test_state_round_trip() -> None:
    groups = v1_groups((CPU, MEMORY), UNIFIED, "/x", "id", "")
    assert groups_from_state(json.loads(json.dumps(groups_to_state(groups)))) == groups
    assert groups_from_state([]) == ()


@pytest.mark.parametrize(
    "document",
    [None, {}, [1], [[["cpu"], "/m"]], [[["cpu"], "/m", ""]], [[["cpu"], "/m", "../x"]], [[["cpu"], "/m", "/x"]]],
)
def test_unusable_state(document: object) -> None:
    with pytest.raises(InternalError, match="unusable cgroup"):
        groups_from_state(document)


def test_view_of_v1() -> None:
    view = view_v1(v1_groups((CPU, MEMORY, SYSTEMD), UNIFIED, "/x", "id", ""))
    assert [(item.name, item.options) for item in view.hierarchies] == [
        ("cpu,cpuacct", "cpu,cpuacct"),
        ("memory", "memory"),
        ("systemd", "name=systemd"),
    ]
    assert view.links == (("cpu", "cpu,cpuacct"), ("cpuacct", "cpu,cpuacct"))
    assert view.hierarchies[1].source == "/sys/fs/cgroup/memory/x"
    assert view.unified == "/sys/fs/cgroup/unified/x"


def test_view_of_v2() -> None:
    view = view_v2(Group((), "/sys/fs/cgroup", "x"))
    assert view == ((), (), "/sys/fs/cgroup/x")
