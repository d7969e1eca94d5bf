"""Mounts of config.json as operations: every option, and what the new mount API makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from shimd.errors import InvalidSpec
from shimd.linux import mount as linux
from shimd.oci.rules import PROC_BINDS
from shimd.plan import ops
from shimd.plan.mount_options import parse_options
from tests.support.plans import HOST, HYBRID_HOST, HYBRID_VIEW, create, of_type
from tests.support.specs import containerd_default, runc_default

RO, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
NOATIME, STRICTATIME, ATIME, NODIRATIME, NOSYMFOLLOW = 0x10, 0x20, 0x70, 0x80, 0x200000
PLAIN = RO | NOSUID | NODEV | NOEXEC | NOSYMFOLLOW


def document(*mounts: dict[str, Any], namespaces: tuple[str, ...] = ()) -> dict[str, Any]:
    config = runc_default()
    config["mounts"] = list(mounts)
    config["linux"]["namespaces"] += [{"type": kind} for kind in namespaces]
    return config


def mount_of(fstype: str, *options: str, destination: str = "/mnt", source: str = "src") -> ops.Mount:
    entry = {"destination": destination, "type": fstype, "source": source, "options": list(options)}
    [found] = of_type(create(document(entry)), ops.Mount)
    assert isinstance(found, ops.Mount)
    return found


def bind_of(*options: str, source: str = "/src", **fields: Any) -> ops.Bind:
    entry = {"destination": "/mnt", "source": source, "options": list(options), **fields}
    [found] = of_type(create(document(entry)), ops.Bind)
    assert isinstance(found, ops.Bind)
    return found


# ---- new file systems ------------------------------------------------------------------------------------------------


def test_a_new_file_system() -> None:
    assert mount_of("ext4", "ro", "nosuid", "data=ordered", source="/dev/loop0") == ops.Mount(
        "/mnt",
        "ext4",
        "/dev/loop0",
        ("ro", "data=ordered"),
        ops.MountAttr(RO | NOSUID, 0, 0, recursive=False),
        (),
        copy_up=False,
        label="",
    )


@pytest.mark.parametrize(
    ("options", "attributes", "data"),
    [
        (["defaults"], 0, ()),
        (["ro"], RO, ("ro",)),
        (["ro", "rw"], 0, ()),
        (["nosuid", "nodev", "noexec"], NOSUID | NODEV | NOEXEC, ()),
        (["nosuid", "suid", "nodev", "dev", "noexec", "exec"], 0, ()),
        (["nosymfollow"], NOSYMFOLLOW, ()),
        (["nosymfollow", "symfollow"], 0, ()),
        (["noatime"], NOATIME, ()),
        (["noatime", "atime"], 0, ()),
        (["relatime"], 0, ()),
        (["relatime", "norelatime"], 0, ()),
        (["strictatime"], STRICTATIME, ()),
        (["strictatime", "nostrictatime"], 0, ()),
        (["noatime", "strictatime"], STRICTATIME, ()),
        (["nodiratime"], NODIRATIME, ()),
        (["nodiratime", "diratime"], 0, ()),
        (["sync", "dirsync", "mand", "lazytime"], 0, ("sync", "dirsync", "mand", "lazytime")),
        (["sync", "async", "mand", "nomand", "lazytime", "nolazytime"], 0, ()),
        (["iversion", "noiversion", "silent", "loud"], 0, ()),
        (["size=1m", "mode=700"], 0, ("size=1m", "mode=700")),
        (["size=1m,mode=700"], 0, ("size=1m", "mode=700")),
        (['context="system_u:object_r:t:s0:c1,c2",size=1'], 0, ("context=system_u:object_r:t:s0:c1,c2", "size=1")),
        (['lowerdir=/a"b', "userxattr"], 0, ('lowerdir=/a"b', "userxattr")),
    ],
)
def test_options_of_a_new_file_system(options: list[str], attributes: int, data: tuple[str, ...]) -> None:
    found = mount_of("xfs", *options)
    assert (found.attr, found.data) == (ops.MountAttr(attributes, 0, 0, recursive=False), data)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        (["private"], [(0, 0, linux.MS_PRIVATE, False)]),
        (["rslave", "shared"], [(0, 0, linux.MS_SLAVE, True), (0, 0, linux.MS_SHARED, False)]),
        (["runbindable"], [(0, 0, linux.MS_UNBINDABLE, True)]),
        (["rro"], [(RO, 0, 0, True)]),
        (["rrw"], [(0, RO, 0, True)]),
        (["rro", "rrw"], [(0, RO, 0, True)]),
        (["rnosuid", "rnodev", "rnoexec"], [(NOSUID | NODEV | NOEXEC, 0, 0, True)]),
        (["rsuid", "rdev", "rexec"], [(0, NOSUID | NODEV | NOEXEC, 0, True)]),
        (["rnoatime"], [(NOATIME, ATIME, 0, True)]),
        (["rnoatime", "rstrictatime"], [(STRICTATIME, ATIME, 0, True)]),
        (["rstrictatime", "rrelatime"], [(0, ATIME, 0, True)]),
        (["ratime"], [(0, ATIME, 0, True)]),
        (["rnorelatime"], [(0, ATIME, 0, True)]),
        (["rnostrictatime"], [(0, ATIME, 0, True)]),
        (["rnodiratime"], [(NODIRATIME, 0, 0, True)]),
        (["rdiratime"], [(0, NODIRATIME, 0, True)]),
        (["rnosymfollow"], [(NOSYMFOLLOW, 0, 0, True)]),
        (["rsymfollow"], [(0, NOSYMFOLLOW, 0, True)]),
        (["rro", "rprivate"], [(0, 0, linux.MS_PRIVATE, True), (RO, 0, 0, True)]),
    ],
)
def test_propagation_and_recursive_options(options: list[str], more: list[tuple[int, int, int, bool]]) -> None:
    assert mount_of("xfs", *options).more == tuple(ops.MountAttr(*fields) for fields in more)
    assert bind_of("rbind", *options).more == tuple(ops.MountAttr(*fields) for fields in more)


def test_read_only_comes_last_where_something_is_to_be_written_first() -> None:
    plan = create(
        document(
            {"destination": "/dev", "type": "devtmpfs", "source": "dev", "options": ["ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        )
    )
    assert [(op.target, op.data, op.attr.set) for op in of_type(plan, ops.Mount)] == [
        ("/dev", (), 0),
        ("/run", (), 0),
        ("/sys", ("ro",), RO),
    ]
    assert of_type(plan, ops.FinalizeReadonly) == [
        ops.FinalizeReadonly("/dev"),
        ops.FinalizeReadonly("/run"),
        ops.FinalizeReadonly("/"),
    ]


def test_copy_up_is_for_tmpfs_alone() -> None:
    assert mount_of("tmpfs", "tmpcopyup").copy_up
    with pytest.raises(InvalidSpec, match="/mounts/0/options: tmpcopyup is for a tmpfs, not for xfs"):
        mount_of("xfs", "tmpcopyup")
    with pytest.raises(InvalidSpec, match="/mounts/0/options: tmpcopyup is for a tmpfs, not for a bind mount"):
        bind_of("rbind", "tmpcopyup")


@pytest.mark.parametrize(
    ("fstype", "label"),
    [("tmpfs", "x:y"), ("devpts", "x:y"), ("mqueue", "x:y"), ("proc", ""), ("sysfs", ""), ("cgroup2", "")],
)
def test_mount_label(fstype: str, label: str) -> None:
    config = document({"destination": "/proc" if fstype == "proc" else "/mnt", "type": fstype, "source": "src"})
    config["linux"]["mountLabel"] = "x:y"
    plan = create(config, HYBRID_HOST)
    assert [op.label for op in of_type(plan, ops.Mount)] == [label]
    assert [op.label for op in of_type(plan, ops.MaskPaths)] == ["x:y"]


@pytest.mark.parametrize("destination", ["mnt", "/mnt/", "//mnt", "/a/../mnt", "../mnt"])
def test_destinations_are_cleaned(destination: str) -> None:
    assert mount_of("tmpfs", destination=destination).target == "/mnt"


def test_remount_of_what_is_mounted() -> None:
    entry = {"destination": "/mnt", "type": "tmpfs", "source": "x", "options": ["remount", "nosuid", "size=1m"]}
    assert of_type(create(document(entry)), ops.Remount) == [
        ops.Remount("/mnt", ("rw", "size=1m"), ops.MountAttr(NOSUID, PLAIN & ~NOSUID, 0, recursive=False), ())
    ]


# ---- binds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [("/src", "/src"), ("src", "/bundle/src"), ("../x", "/x"), (".", "/bundle"), ("/a/./b/", "/a/b")],
)
def test_relative_sources_are_of_the_bundle(source: str, expected: str) -> None:
    assert bind_of("bind", source=source).source == expected


@pytest.mark.parametrize(
    ("fields", "options", "recursive"),
    [({}, ["bind"], False), ({}, ["rbind"], True), ({"type": "bind"}, [], False), ({"type": "ext4"}, ["rbind"], True)],
)
def test_what_makes_a_bind(fields: dict[str, str], options: list[str], recursive: bool) -> None:  # noqa: FBT001
    found = bind_of(*options, **fields)
    assert (found.recursive, found.remount, found.more, found.slot) == (recursive, False, (), "")


@pytest.mark.parametrize(
    ("options", "attr", "explicit_clear"),
    [
        (["ro"], (RO, PLAIN & ~RO), 0),
        (["rw"], (0, PLAIN), RO),
        (["nosuid", "nodev"], (NOSUID | NODEV, PLAIN & ~(NOSUID | NODEV)), 0),
        (["ro", "exec"], (RO, PLAIN & ~RO), NOEXEC),
        (["noatime"], (NOATIME, PLAIN | NODIRATIME | ATIME), 0),
        (["relatime"], (0, PLAIN | NODIRATIME | ATIME), 0),
        (["nodiratime"], (NODIRATIME, PLAIN | ATIME), 0),
        (["strictatime", "noatime"], (STRICTATIME, PLAIN | NODIRATIME | ATIME), 0),
        (["atime", "nostrictatime"], (0, PLAIN), NOATIME | STRICTATIME),
        (["sync"], (0, PLAIN), 0),
    ],
)
def test_flags_of_a_bind_replace_those_of_the_source(
    options: list[str], attr: tuple[int, int], explicit_clear: int
) -> None:
    found = bind_of("rbind", *options)
    assert found.remount
    assert found.attr == ops.MountAttr(*attr, 0, recursive=False)
    assert found.explicit_clear == explicit_clear


def test_data_on_a_bind_is_refused() -> None:
    with pytest.raises(InvalidSpec, match='/mounts/0/options/2: unknown option "nosiud" of a bind mount'):
        bind_of("rbind", "ro", "nosiud")


def test_all_problems_come_at_once() -> None:
    bad = {"destination": "/mnt", "source": "/x", "options": ["bind", "foo"]}
    with pytest.raises(InvalidSpec) as caught:
        create(document(bad, bad))
    assert [problem.pointer for problem in caught.value.problems] == ["/mounts/0/options/1", "/mounts/1/options/1"]


def test_in_a_user_namespace_the_runtime_opens_the_sources() -> None:
    config = document({"destination": "/mnt", "source": "/src", "options": ["rbind"]}, namespaces=("user",))
    for field in ("uidMappings", "gidMappings"):
        config["linux"][field] = [{"containerID": 0, "hostID": 1000, "size": 1}]
    plan = create(config)
    trees = (
        ops.TreeSource("rootfs", "/bundle/rootfs", recursive=True),
        ops.TreeSource("mount.0", "/src", recursive=True),
    )
    assert plan.trees == trees
    assert [op.slot for op in of_type(plan, ops.Bind)] == ["mount.0"]
    assert [op.slot for op in of_type(plan, ops.PrepareRoot)] == ["rootfs"]
    rootless = create(config, HOST._replace(euid=1000))
    assert rootless.trees == ()
    assert [op.slot for op in of_type(rootless, ops.Bind)] == [""]


# ---- cgroups ---------------------------------------------------------------------------------------------------------

CGROUP = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
QUIET = ops.MountAttr(RO | NOSUID | NODEV | NOEXEC, 0, 0, recursive=False)


@pytest.mark.parametrize("fstype", ["cgroup", "cgroup2"])
@pytest.mark.parametrize(
    ("namespaces", "fallback"), [((), "/sys/fs/cgroup"), (("cgroup",), "/sys/fs/cgroup/default/c1")]
)
def test_cgroup_v2(fstype: str, namespaces: tuple[str, ...], fallback: str) -> None:
    plan = create(document({**CGROUP, "type": fstype}, namespaces=namespaces))
    attr = ops.MountAttr(RO | NOSUID, 0, 0, recursive=False)
    assert of_type(plan, ops.MountCgroup2) == [ops.MountCgroup2("/sys/fs/cgroup", fallback, attr, ())]


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_cgroup_v1(own: bool) -> None:  # noqa: FBT001
    """With a cgroup namespace the mounts show the container's part by themselves; else that part is bound."""
    plan = create(document(CGROUP, namespaces=("cgroup",) * own), HYBRID_HOST, cgroups=HYBRID_VIEW)
    sources = (
        ("", "", "")
        if own
        else (
            "/sys/fs/cgroup/cpu,cpuacct/default/c1",
            "/sys/fs/cgroup/systemd/default/c1",
            "/sys/fs/cgroup/unified/default/c1",
        )
    )
    assert of_type(plan, ops.MountCgroup1) == [
        ops.MountCgroup1(
            "/sys/fs/cgroup",
            (
                ("cpu,cpuacct", "cgroup", "cpu,cpuacct", sources[0]),
                ("systemd", "cgroup", "name=systemd", sources[1]),
                ("unified", "cgroup2", "", sources[2]),
            ),
            (("cpu", "cpu,cpuacct"), ("cpuacct", "cpu,cpuacct")),
            QUIET,
            (),
            readonly=True,
        )
    ]


def test_options_that_would_reach_the_hosts_hierarchy_are_left_out() -> None:
    plan = create(document({**CGROUP, "options": ["ro", "nsdelegate"]}))
    assert plan.warnings == ("/mounts/0/options/1: options of the cgroup file system are ignored",)


def test_a_host_without_cgroups() -> None:
    with pytest.raises(InvalidSpec, match="/mounts/0: no cgroup file system is mounted on this host"):
        create(document(CGROUP), HOST._replace(cgroup_mode="none", unified=None))


# ---- /dev and /proc --------------------------------------------------------------------------------------------------


def test_a_bound_dev_is_taken_as_it_is() -> None:
    plan = create(document({"destination": "/dev/", "source": "/dev", "options": ["rbind", "ro"]}))
    assert of_type(plan, ops.MakeDevice) == of_type(plan, ops.Symlink) == []
    assert [op.attr.set for op in of_type(plan, ops.Bind)] == [RO]


def test_the_configuration_wins_over_default_devices() -> None:
    config = containerd_default()
    config["linux"]["devices"] = [
        {"path": "/dev/null", "type": "u", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 1, "gid": 2},
        {"path": "dev/pipe", "type": "p"},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
    ]
    found = of_type(create(config), ops.MakeDevice)
    assert [op.path.removeprefix("/dev/") for op in found] == "zero full random urandom tty null pipe sda".split()  # noqa: SIM905
    assert found[5:] == [
        ops.MakeDevice("/dev/null", "c", 1, 3, 0o600, 1, 2, bind=False),
        ops.MakeDevice("/dev/pipe", "p", 0, 0, 0o666, 0, 0, bind=False),
        ops.MakeDevice("/dev/sda", "b", 8, 0, 0o666, 0, 0, bind=False),
    ]


def test_inside_of_a_user_namespace_devices_are_bound() -> None:
    plan = create(containerd_default(), HOST._replace(in_userns=True))
    assert {op.bind for op in of_type(plan, ops.MakeDevice)} == {True}


def test_core_only_where_the_kernel_has_it() -> None:
    def links(host: Any) -> list[str]:
        return [op.path for op in of_type(create(containerd_default(), host), ops.Symlink)]

    assert "/dev/core" in links(HOST)
    assert "/dev/core" not in links(HOST._replace(proc_kcore=False))


def test_init_and_validation_agree_on_what_is_mountable_inside_proc() -> None:
    assert ops.PROC_FILES == PROC_BINDS


MAP = [{"containerID": 0, "hostID": 100000, "size": 10}]


def test_a_mount_inside_of_the_rootfs_by_its_path_on_the_host() -> None:
    bind = bind_of("bind", source="rootfs/a/../b")
    assert (bind.source, bind.inside) == ("/b", True)
    bind = bind_of("bind", source="/bundle/rootfs2/b")
    assert (bind.source, bind.inside) == ("/bundle/rootfs2/b", False)
    entry = {"destination": "/bundle/rootfs/x", "source": "/src", "options": ["bind"]}
    assert [op.target for op in of_type(create(document(entry)), ops.Bind)] == ["/x"]
    assert [op.target for op in of_type(create(document(entry), rootfs="/"), ops.Bind)] == ["/bundle/rootfs/x"]
    bind = bind_of("bind", source="rootfs")
    assert (bind.source, bind.inside) == ("/", True)


def test_the_top_of_the_rootfs_by_its_path_on_the_host() -> None:
    with pytest.raises(InvalidSpec, match="/mounts/0/destination: /bundle/rootfs/ is the top of the rootfs"):
        create(document({"destination": "/bundle/rootfs/", "type": "tmpfs"}))
    dev = {"destination": "/bundle/rootfs/dev", "source": "/dev", "options": ["rbind"]}
    assert of_type(create(document(dev)), ops.MakeDevice) == []


@pytest.mark.parametrize(("options", "everywhere"), [((), False), (("ridmap", "idmap"), False), (("ridmap",), True)])
def test_maps_of_a_mount(options: tuple[str, ...], *, everywhere: bool) -> None:
    bind = bind_of("rbind", *options, uidMappings=MAP, gidMappings=MAP)
    assert (bind.id_map, bind.map_all) == ("ids.0", everywhere)
    assert bind.describe().endswith(f", ids {'of all ' * everywhere}as in ids.0")


def test_the_runtime_maps_what_it_opens() -> None:
    config = document({"destination": "/x", "source": "/src", "options": ["bind", "ridmap"]}, namespaces=("user",))
    config["linux"] |= {"uidMappings": MAP, "gidMappings": MAP}
    plan = create(config)
    one = (ops.IdMap(0, 100000, 10),)
    assert plan.id_maps == (ops.IdMapSource("ids.0", one, one, ""),)
    assert plan.trees[1] == ops.TreeSource("mount.0", "/src", recursive=False, id_map="ids.0", map_all=True)


def test_every_option_is_told_from_data() -> None:
    known = [
        *["async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud"],
        *["mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime"],
        *["nostrictatime", "nosuid", "nosymfollow", "rbind", "relatime", "remount", "ro", "rw", "silent"],
        *["strictatime", "suid", "symfollow", "sync", "private", "rprivate", "shared", "rshared", "slave", "rslave"],
        *["unbindable", "runbindable", "rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec"],
        *["rnodiratime", "rdiratime", "rrelatime", "rnorelatime", "rnoatime", "ratime", "rstrictatime"],
        *["rnostrictatime", "rnosymfollow", "rsymfollow", "tmpcopyup", "idmap", "ridmap"],
    ]
    parsed = parse_options(tuple(known))
    assert (parsed.data, parsed.first_data) == ((), -1)
