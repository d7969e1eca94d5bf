"""``process`` and what becomes of it: limits, identity, the order of steps, what an exec inherits."""

from __future__ import annotations

from typing import Any

import pytest

from shimd.plan import ops
from tests.support.plans import HOST, create, execute, of_type, texts
from tests.support.specs import containerd_default

READ_ONLY_SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW"}


def document(**fields: Any) -> dict[str, Any]:
    config = containerd_default()
    config["process"].update(fields)
    return config


def names(plan: ops.Plan) -> list[str]:
    return [type(step.op).__name__ for step in plan.steps]


def between(plan: ops.Plan, first: str, last: str) -> list[str]:
    found = names(plan)
    return found[found.index(first) : found.index(last) + 1]


# ---- order -----------------------------------------------------------------------------------------------------------


def test_privileges_are_dropped_in_order() -> None:
    config = document(noNewPrivileges=True, user={"uid": 1, "gid": 2, "umask": 0o27})
    config["linux"]["seccomp"] = READ_ONLY_SECCOMP
    assert between(create(config), "Sync", "Execute") == [
        "Sync",
        "BoundingSet",
        "Chdir",
        "User",
        "Capabilities",
        "Chdir",
        "HomeEnv",
        "FindProgram",
        "Umask",
        "WaitStart",
        "CloseFds",
        "ResetSignals",
        "Seccomp",
        "Execute",
    ]


def test_without_no_new_privs_the_filter_is_loaded_while_there_is_the_right_to() -> None:
    config = document(noNewPrivileges=False, selinuxLabel="x:y")
    config["linux"]["seccomp"] = READ_ONLY_SECCOMP
    plan = create(config)
    assert between(plan, "Sync", "BoundingSet") == ["Sync", "SelinuxExec", "Seccomp", "BoundingSet"]
    assert between(plan, "CloseFds", "Execute") == ["CloseFds", "ResetSignals", "Execute"]
    assert "NoNewPrivileges" not in names(plan)


def test_run_has_no_gate() -> None:
    assert "WaitStart" in names(create(document()))
    assert "WaitStart" not in names(create(document(), gate=False))


def test_hooks() -> None:
    config = document()
    config["annotations"] = {"a": '"pid":1'}
    config["hooks"] = {
        "prestart": [{"path": "/a"}],
        "createRuntime": [{"path": "/b", "args": ["b", "c"], "env": ["X=1"], "timeout": 3}],
        "createContainer": [{"path": "/c"}],
        "startContainer": [{"path": "/d"}],
        "poststop": [{"path": "/e"}],
    }
    plan = create(config)
    assert plan.hooks_prestart == (ops.HookSpec("/a", ("/a",), (), 0), ops.HookSpec("/b", ("b", "c"), ("X=1",), 3))
    assert between(plan, "Sync", "PivotRoot") == ["Sync", "RunHooks", "PivotRoot"]
    create_container, start_container = of_type(plan, ops.RunHooks)
    assert create_container.hooks == (ops.HookSpec("/c", ("/c",), (), 0),)
    assert names(plan).index("WaitStart") < len(names(plan)) - 1 - names(plan)[::-1].index("RunHooks")
    before, after = start_container.state
    assert f"{before}7{after}" == (
        '{"ociVersion":"1.3.0","id":"c1","status":"created","pid":7,"bundle":"/bundle",'
        '"annotations":{"a":"\\"pid\\":1"}}'
    )


def test_the_runtime_is_asked_for_hooks_only_when_there_are_some() -> None:
    assert [op.point for op in of_type(create(document()), ops.Sync)] == ["ready"]


# ---- fields ----------------------------------------------------------------------------------------------------------


def test_rlimits() -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}, {"type": "RLIMIT_RTTIME", "soft": 0, "hard": 2**64 - 1}]
    assert create(document(rlimits=limits)).rlimits == (ops.Rlimit(7, 1, 2), ops.Rlimit(15, 0, 2**64 - 1))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"policy": "SCHED_BATCH", "nice": 5}, ops.Scheduler(3, 5, 0, 0, 0, 0, 0)),
        (
            {"policy": "SCHED_FIFO", "priority": 9, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            ops.Scheduler(1, 0, 9, 1, 0, 0, 0),
        ),
        (
            {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3},
            ops.Scheduler(6, 0, 0, 0, 1, 2, 3),
        ),
    ],
)
def test_scheduler(scheduler: dict[str, Any], expected: ops.Scheduler) -> None:
    assert of_type(create(document(scheduler=scheduler)), ops.Scheduler) == [expected]


def test_io_priority_and_personality() -> None:
    config = document(ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 7})
    config["linux"]["personality"] = {"domain": "LINUX32"}
    plan = create(config)
    assert of_type(plan, ops.IoPriority) == [ops.IoPriority(3, 7)]
    assert of_type(plan, ops.Personality) == [ops.Personality(8)]


@pytest.mark.parametrize(("host", "tolerate"), [(HOST, False), (HOST._replace(in_userns=True), True)])
def test_oom_score(host: Any, tolerate: bool) -> None:  # noqa: FBT001
    plan = create(document(oomScoreAdj=-500), host)
    assert plan.steps[0].op == ops.OomScoreAdj(-500, tolerate)
    assert of_type(create(document()), ops.OomScoreAdj) == []


def test_terminal_and_stdio() -> None:
    user = {"uid": 5, "gid": 6}
    assert of_type(create(document(user=user)), ops.Stdio) == [ops.Stdio(5)]
    terminal = create(document(user=user, terminal=True, consoleSize={"height": 24, "width": 80}))
    assert of_type(terminal, ops.Terminal) == [ops.Terminal(5, 24, 80, console_device=True)]
    assert of_type(create(document(terminal=True)), ops.Terminal) == [ops.Terminal(0, 0, 0, console_device=True)]


def test_keyring() -> None:
    assert of_type(create(document(selinuxLabel="x:y")), ops.SessionKeyring) == [ops.SessionKeyring("_ses.c1", "x:y")]
    assert of_type(create(document(), no_new_keyring=True), ops.SessionKeyring) == []


@pytest.mark.parametrize(
    ("env", "expected", "looks_up_home"),
    [
        (["A=1", "B=2", "A=3"], ("B=2", "A=3"), True),
        (["HOME=/x", "A=="], ("HOME=/x", "A=="), False),
        (["HOME=", "A="], ("A=",), True),
        (["HOME=/x", "HOME="], (), True),
        ([], (), True),
    ],
)
def test_environment(env: list[str], expected: tuple[str, ...], looks_up_home: bool) -> None:  # noqa: FBT001
    plan = create(document(env=env, user={"uid": 7, "gid": 0}))
    assert [op.env for op in of_type(plan, ops.FindProgram)] == [expected]
    assert of_type(plan, ops.HomeEnv) == [ops.HomeEnv(7)] * looks_up_home


def test_the_working_directory_is_made_while_the_root_can_be_written() -> None:
    config = document(cwd="/a/b")
    config["root"]["readonly"] = True
    plan = create(config)
    assert of_type(plan, ops.MakeDirectory) == [ops.MakeDirectory("/a/b", 0o755)]
    assert names(plan).index("MakeDirectory") < names(plan).index("FinalizeReadonly")
    assert of_type(create(document(cwd="/")), ops.MakeDirectory) == []


def test_sysctls_have_their_path_below_proc_sys() -> None:
    config = document()
    config["linux"]["sysctl"] = {"net.ipv4.conf.eth0/100.rp_filter": "1", "net/core/somaxconn": "2"}
    assert [(step.origin, step.op) for step in create(config).steps if isinstance(step.op, ops.Sysctl)] == [
        ("/linux/sysctl/net.ipv4.conf.eth0~1100.rp_filter", ops.Sysctl("net/ipv4/conf/eth0.100/rp_filter", "1")),
        ("/linux/sysctl/net~1core~1somaxconn", ops.Sysctl("net/core/somaxconn", "2")),
    ]


def test_hidden_paths_are_clean_and_once() -> None:
    config = document()
    config["linux"].update(maskedPaths=["/proc/kcore", "/proc//kcore/", "/a"], readonlyPaths=["/proc/sys/"])
    plan = create(config)
    assert of_type(plan, ops.MaskPaths) == [ops.MaskPaths(("/proc/kcore", "/a"), "")]
    assert of_type(plan, ops.ReadonlyPath) == [ops.ReadonlyPath("/proc/sys")]


def test_descriptors_and_death_signal() -> None:
    plan = create(document(), preserve_fds=2, death_signal=9)
    assert of_type(plan, ops.CloseFds) == [ops.CloseFds(2)]
    assert of_type(plan, ops.ResetSignals) == [ops.ResetSignals(9)]


# ---- capabilities ----------------------------------------------------------------------------------------------------

CHOWN, KILL, SYS_RESOURCE = 1 << 0, 1 << 5, 1 << 24


def test_capabilities() -> None:
    sets = {
        "bounding": ["CAP_CHOWN", "CAP_KILL"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL", "CAP_NO_SUCH"],
    }
    plan = create(document(capabilities=sets))
    assert of_type(plan, ops.BoundingSet) == [ops.BoundingSet(CHOWN | KILL)]
    assert of_type(plan, ops.Capabilities) == [ops.Capabilities(CHOWN, CHOWN | KILL, KILL, KILL)]
    assert [op.keep_caps for op in of_type(plan, ops.User)] == [True]


def test_empty_capabilities_drop_all() -> None:
    plan = create(document(capabilities={}))
    assert of_type(plan, ops.BoundingSet) == [ops.BoundingSet(0)]
    assert of_type(plan, ops.Capabilities) == [ops.Capabilities(0, 0, 0, 0)]


def test_absent_capabilities_leave_the_sets_alone() -> None:
    config = document()
    del config["process"]["capabilities"]
    plan = create(config)
    assert of_type(plan, ops.BoundingSet) == of_type(plan, ops.Capabilities) == []
    assert [op.keep_caps for op in of_type(plan, ops.User)] == [False]


def test_what_the_host_cannot_grant_is_left_out_with_a_warning() -> None:
    sets = dict.fromkeys(("bounding", "permitted", "effective"), ("CAP_CHOWN", "CAP_SYS_RESOURCE"))
    plan = create(document(capabilities=sets), HOST._replace(effective_caps=HOST.effective_caps & ~SYS_RESOURCE))
    assert plan.warnings == ("/process/capabilities: not available here, left out: CAP_SYS_RESOURCE",)
    assert of_type(plan, ops.BoundingSet) == [ops.BoundingSet(CHOWN | SYS_RESOURCE)]
    assert of_type(plan, ops.Capabilities) == [ops.Capabilities(CHOWN, CHOWN, 0, 0)]


def test_an_older_kernel_does_not_get_capabilities_that_it_does_not_know() -> None:
    sets = dict.fromkeys(("bounding", "permitted"), ("CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"))
    plan = create(document(capabilities=sets), HOST._replace(last_cap=37))
    assert of_type(plan, ops.BoundingSet) == [ops.BoundingSet(CHOWN)]
    assert plan.warnings == ()


# ---- exec ------------------------------------------------------------------------------------------------------------


def test_exec_takes_from_the_container_what_it_does_not_name() -> None:
    config = document(
        apparmorProfile="profile",
        selinuxLabel="x:y",
        oomScoreAdj=7,
        scheduler={"policy": "SCHED_BATCH"},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 1},
        user={"uid": 0, "gid": 0, "umask": 0o77},
        execCPUAffinity={"final": "2"},
    )
    config["linux"]["personality"] = {"domain": "LINUX32"}
    config["linux"]["seccomp"] = READ_ONLY_SECCOMP
    plan = execute({"args": ["sh"], "cwd": "/", "user": {"uid": 3, "gid": 4}}, config)
    own = create(config)
    for kind in (
        *(ops.BoundingSet, ops.Capabilities, ops.AppArmor, ops.SelinuxExec, ops.OomScoreAdj, ops.Scheduler),
        *(ops.IoPriority, ops.Personality, ops.Seccomp),
    ):
        assert of_type(plan, kind) == of_type(own, kind) != []
    assert plan.rlimits == own.rlimits != ()
    assert of_type(plan, ops.Umask) == [ops.Umask(0o77)]
    assert of_type(plan, ops.CpuAffinity) == [ops.CpuAffinity((2,))]
    assert of_type(plan, ops.User) == [ops.User(3, 4, (), keep_caps=True)]
    # Not asked for, though the container has it: a document of an exec always says it.
    assert of_type(plan, ops.NoNewPrivileges) == []


def test_exec_has_its_own_where_it_names_it() -> None:
    process = {
        "args": ["sh"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"]},
        "apparmorProfile": "own",
        "oomScoreAdj": 0,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}],
        "user": {"uid": 0, "gid": 0, "umask": 0},
        "noNewPrivileges": True,
    }
    plan = execute(process, document(apparmorProfile="profile", oomScoreAdj=7))
    assert of_type(plan, ops.BoundingSet) == [ops.BoundingSet(KILL)]
    assert of_type(plan, ops.AppArmor) == [ops.AppArmor("own")]
    assert of_type(plan, ops.OomScoreAdj) == [ops.OomScoreAdj(0, tolerate=False)]
    assert plan.rlimits == (ops.Rlimit(4, 1, 1),)
    assert of_type(plan, ops.Umask) == [ops.Umask(0)]
    assert of_type(plan, ops.NoNewPrivileges) == [ops.NoNewPrivileges()]


@pytest.mark.parametrize(
    ("affinity", "expected"),
    [
        (None, [()]),
        ({"initial": "0-2"}, [(0, 1, 2)]),
        ({"final": "1,3"}, [(1, 3)]),
        ({"initial": "0", "final": "1"}, [(0,), (1,)]),
    ],
)
def test_affinity_of_an_exec(affinity: dict[str, str] | None, expected: list[tuple[int, ...]]) -> None:
    process: dict[str, Any] = {"args": ["sh"], "cwd": "/"}
    if affinity:
        process["execCPUAffinity"] = affinity
    plan = execute(process, document())
    assert [op.cpus for op in of_type(plan, ops.CpuAffinity)] == expected


def test_exec_does_not_touch_the_rootfs() -> None:
    plan = execute({"args": ["sh"], "cwd": "/x", "terminal": True}, document())
    assert texts(plan.steps)[:4] == [
        "enter the cgroups of cgroup.0",
        "join ipc, uts, net, mnt namespace of init",
        "new session keyring _ses.c1",
        "open a terminal 0x0",
    ]
    assert of_type(plan, ops.Terminal) == [ops.Terminal(0, 0, 0, console_device=False)]
    for kind in (ops.Mount, ops.MakeDirectory, ops.PivotRoot, ops.WaitStart, ops.RunHooks):
        assert of_type(plan, kind) == []
