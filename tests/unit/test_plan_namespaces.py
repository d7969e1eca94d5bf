"""Who makes and who joins namespaces, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from shimd.host.facts import HostFacts
from shimd.linux import process as linux
from shimd.linux.mount import MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE
from shimd.plan import ops
from tests.support.plans import HOST, create, execute, of_type, texts
from tests.support.specs import runc_default

NEW = linux.CLONE_NEWNS
ROOTLESS = HOST._replace(euid=1000)
MAP = [{"containerID": 0, "hostID": 100000, "size": 65536}]
PROCESS = {"args": ["sh"], "cwd": "/"}


def document(*namespaces: str, oom_score_adj: int | None = None, **linux_fields: Any) -> dict[str, Any]:
    """``namespaces`` beside a new mount namespace: "pid", or "pid=/path" for one to join."""
    config = runc_default()
    entries = [entry.partition("=") for entry in namespaces]
    config["linux"]["namespaces"] = [
        {"type": "mount"},
        *({"type": kind, "path": path} if path else {"type": kind} for kind, _, path in entries),
    ]
    config["linux"].update(linux_fields)
    if "user" in namespaces:
        config["linux"].update(uidMappings=MAP, gidMappings=MAP)
    if "uts" not in [kind for kind, _, _ in entries]:
        del config["hostname"]
    if oom_score_adj is not None:
        config["process"]["oomScoreAdj"] = oom_score_adj
    return config


def start(plan: ops.Plan) -> list[str]:
    """The steps before the rootfs."""
    lines = texts(plan.steps)
    return lines[: lines.index("umask 0022")]


def test_new_namespaces_come_with_the_clone() -> None:
    plan = create(document("pid", "network", "ipc", "uts", "time"), no_new_keyring=True)
    flags = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWTIME
    assert plan.clone == NEW | flags
    assert (plan.stage, plan.namespaces) == ((), ())
    assert start(plan) == ["enter the cgroups of cgroup.0", "bring up lo"]


def test_a_cgroup_namespace_is_made_in_the_cgroup() -> None:
    plan = create(document("cgroup"), no_new_keyring=True)
    assert plan.clone == NEW
    assert start(plan) == ["enter the cgroups of cgroup.0", "new cgroup namespace"]


def test_init_joins_what_it_can_by_itself() -> None:
    plan = create(document("network=/run/net", "ipc=/ipc", "time=/time"), no_new_keyring=True)
    assert plan.clone == NEW
    assert plan.namespaces == (
        ops.NamespaceFile("ns.1", "/run/net", linux.CLONE_NEWNET),
        ops.NamespaceFile("ns.2", "/ipc", linux.CLONE_NEWIPC),
        ops.NamespaceFile("ns.3", "/time", linux.CLONE_NEWTIME),
    )
    assert plan.stage == ()
    assert start(plan) == [
        "enter the cgroups of cgroup.0",
        "join net namespace of ns.1",
        "join ipc namespace of ns.2",
        "join time namespace of ns.3",
    ]


def test_only_the_pid_namespace_is_joined_before_the_clone() -> None:
    plan = create(document("network=/net", "pid=/pid"), no_new_keyring=True)
    assert texts(plan.stage) == ["join pid namespace of ns.2"]
    assert start(plan) == ["enter the cgroups of cgroup.0", "join net namespace of ns.1"]


def test_offsets_are_written_before_the_first_process_is_in_the_time_namespace() -> None:
    offsets = {"monotonic": {"secs": 10}, "boottime": {"secs": -1, "nanosecs": 5}}
    plan = create(document("time", "network=/net", timeOffsets=offsets), no_new_keyring=True)
    assert plan.clone == NEW
    assert plan.stage[-1].op == ops.TimeOffsets((("monotonic", 10, 0), ("boottime", -1, 5)))
    assert texts(plan.stage) == [
        "enter the cgroups of cgroup.0",
        "join net namespace of ns.2",
        "new time namespace",
        "set time offsets monotonic 10 s 0 ns, boottime -1 s 5 ns",
    ]
    assert start(plan) == []


def test_a_new_user_namespace() -> None:
    plan = create(document("user", "cgroup"), no_new_keyring=True)
    assert plan.clone == NEW | linux.CLONE_NEWUSER
    assert plan.uid_map == plan.gid_map == (ops.IdMap(0, 100000, 65536),)
    assert not plan.deny_setgroups
    assert plan.stage == ()
    assert start(plan) == [
        "enter the cgroups of cgroup.0",
        "wait for the runtime: maps",
        "become root of the user namespace",
        "new cgroup namespace",
    ]


def test_others_are_joined_before_a_new_user_namespace_takes_the_right_to() -> None:
    plan = create(document("user", "network=/net"), no_new_keyring=True)
    assert texts(plan.stage) == ["enter the cgroups of cgroup.0", "join net namespace of ns.2"]
    assert start(plan) == ["wait for the runtime: maps", "become root of the user namespace"]


@pytest.mark.parametrize(("value", "staged"), [(100, False), (-100, True)])
def test_the_oom_score_is_lowered_outside_of_the_user_namespace(value: int, staged: bool) -> None:  # noqa: FBT001
    plan = create(document("user", oom_score_adj=value))
    assert ops.OomScoreAdj(value, tolerate=False) in [step.op for step in (plan.stage if staged else plan.steps)]


@pytest.mark.parametrize(
    ("host", "order"), [(HOST, ["net", "pid", "user"]), (ROOTLESS, ["user", "net", "pid"])], ids=["root", "rootless"]
)
def test_a_joined_user_namespace_comes_last_for_root_and_first_for_others(host: Any, order: list[str]) -> None:
    plan = create(document("user=/user", "network=/net", "pid=/pid"), host, no_new_keyring=True)
    joined = [linux.NAMESPACE_FILES[step.op.flags] for step in plan.stage if isinstance(step.op, ops.Setns)]
    assert joined == order
    assert plan.uid_map == ()
    assert start(plan) == ["become root of the user namespace"]


def test_a_namespace_that_denies_setgroups_is_no_place_to_use_it() -> None:
    plan = create(document(), HOST._replace(setgroups_denied=True))
    assert [op.groups for op in of_type(plan, ops.User)] == [None]


def test_one_who_maps_only_himself_gives_up_setgroups() -> None:
    own = [{"containerID": 0, "hostID": 1000, "size": 1}]
    config = document("user")
    config["linux"].update(uidMappings=own, gidMappings=own)
    plan = create(config, ROOTLESS)
    assert plan.deny_setgroups
    assert [op.groups for op in of_type(plan, ops.User)] == [None]
    assert not create(document("user"), ROOTLESS).deny_setgroups
    assert not create(config).deny_setgroups


def test_who_is_not_root_may_write_the_maps_of_a_dumpable_process_only() -> None:
    plan = create(document("user"), ROOTLESS, no_new_keyring=True)
    assert start(plan)[-4:] == [
        "be dumpable",
        "wait for the runtime: maps",
        "be not dumpable",
        "become root of the user namespace",
    ]


# ---- exec ------------------------------------------------------------------------------------------------------------


def test_exec_joins_all_namespaces_of_the_container() -> None:
    plan = execute(PROCESS, document("pid", "network=/net", "cgroup", "time"), no_new_keyring=True)
    assert (plan.clone, plan.namespaces) == (0, ())
    assert texts(plan.stage) == ["join pid namespace of init"]
    assert texts(plan.steps)[:3] == [
        "enter the cgroups of cgroup.0",
        "join cgroup, net, mnt, time namespace of init",
        "set up stdio",
    ]


def test_exec_without_namespaces_joins_nothing() -> None:
    config = document()
    config["linux"].update(namespaces=[], maskedPaths=[], readonlyPaths=[])
    config["mounts"] = []
    config["root"]["readonly"] = False
    plan = execute(PROCESS, config, no_new_keyring=True)
    assert plan.stage == ()
    assert texts(plan.steps)[:2] == ["enter the cgroups of cgroup.0", "set up stdio"]


def test_exec_of_one_without_privileges_enters_the_user_namespace_first() -> None:
    plan = execute(PROCESS, document("pid", "user"), ROOTLESS, no_new_keyring=True)
    assert texts(plan.stage) == ["enter the cgroups of cgroup.0", "join user, pid, mnt namespace of init"]
    assert texts(plan.steps)[0] == "become root of the user namespace"


# ---- the rootfs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("propagation", "prepared", "after"),
    [
        (None, MS_SLAVE | MS_REC, []),
        ("private", MS_PRIVATE, []),
        ("rslave", MS_SLAVE | MS_REC, []),
        ("shared", MS_SHARED, [MS_SHARED]),
        ("rshared", MS_SHARED | MS_REC, [MS_SHARED | MS_REC]),
        ("runbindable", MS_SLAVE | MS_REC, [MS_UNBINDABLE | MS_REC]),
    ],
)
def test_propagation(propagation: str | None, prepared: int, after: list[int]) -> None:
    plan = create(document(rootfsPropagation=propagation) if propagation else document())
    assert [op.propagation for op in of_type(plan, ops.PrepareRoot)] == [prepared]
    assert [op.flags for op in of_type(plan, ops.SetPropagation)] == after


@pytest.mark.parametrize(("options", "method"), [({}, "pivot"), ({"no_pivot": True}, "move")])
def test_how_the_rootfs_is_entered(options: dict[str, Any], method: str) -> None:
    assert of_type(create(document(), **options), ops.PivotRoot) == [ops.PivotRoot(method)]


def test_without_a_mount_namespace_the_mounts_stay_as_they_are() -> None:
    config = document()
    config["linux"].update(namespaces=[], maskedPaths=[], readonlyPaths=[])
    config["mounts"] = []
    config["root"]["readonly"] = False
    plan = create(config)
    assert plan.clone == 0
    assert of_type(plan, ops.PrepareRoot) == [ops.PrepareRoot("/bundle/rootfs", 0, "")]
    assert of_type(plan, ops.PivotRoot) == [ops.PivotRoot("chroot")]


# ---- a cgroup that the runtime makes round the process ---------------------------------------------------------------

ENTER = "wait for the runtime: cgroup"


def test_entering_the_cgroup_comes_before_all_that_is_to_be_in_it() -> None:
    plan = create(document("user", "cgroup", "pid"), cgroup_entry=True, cgroup_slots=(), no_new_keyring=True)
    assert start(plan) == [
        ENTER,
        "wait for the runtime: maps",
        "become root of the user namespace",
        "new cgroup namespace",
    ]


def test_a_stage_does_not_wait_for_the_runtime_which_waits_for_it() -> None:
    config = document("user=/user", "network=/net", "pid=/pid")
    plan = create(config, cgroup_entry=True, cgroup_slots=(), no_new_keyring=True)
    assert plan.stage
    assert ENTER not in texts(plan.stage)
    assert start(plan)[0] == ENTER


@pytest.mark.parametrize("host", [HOST, ROOTLESS])
@pytest.mark.parametrize("traced", [False, True])
def test_an_exec_enters_the_cgroup_when_it_is_made(host: HostFacts, *, traced: bool) -> None:
    config = document("pid", "user") if host is ROOTLESS else document("pid")
    if traced:
        config["process"]["capabilities"]["bounding"].append("CAP_SYS_PTRACE")
    plan = execute(PROCESS, config, host, cgroup_entry=True, cgroup_slots=(), no_new_keyring=True)
    assert plan.stage
    assert ENTER not in texts(plan.stage)
    assert texts(plan.steps)[0] == ENTER
