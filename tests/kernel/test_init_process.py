"""Attributes of the process: what the program finds itself to be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shimd.errors import RuntimeFailure
from shimd.init.handshake import Message
from shimd.linux.process import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from shimd.plan import ops
from tests.kernel.init_rig import in_rootfs, program, run, shell
from tests.support.requires import requires

ALL = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS


def status(rootfs: Path, *operations: ops.Op) -> dict[str, str]:
    """/proc/self/status of a program behind these operations."""
    outcome = run(*in_rootfs(rootfs, after=operations), *program("/bin/cat", "/proc/self/status"))
    assert outcome.failure is None, outcome.failure
    return dict(line.split(":\t", 1) for line in outcome.output.splitlines() if ":\t" in line)


def test_user_groups_and_capabilities(busybox: Path) -> None:
    keep = 1 << 5 | 1 << 10
    found = status(
        busybox,
        ops.BoundingSet(keep),
        ops.User(1000, 1001, (7, 8), keep_caps=True),
        ops.Capabilities(keep, keep, 1 << 10, 1 << 10),
        ops.Umask(0o027),
    )
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Gid"].split() == ["1001"] * 4
    assert found["Groups"].split() == ["7", "8"]
    assert int(found["CapBnd"], 16) == keep
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 1 << 10
    assert int(found["CapEff"], 16) == 1 << 10  # what execve leaves to a user without file capabilities
    assert found["Umask"] == "0027"


def test_ambient_capability_that_cannot_be_raised_is_a_warning(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, after=(ops.Capabilities(0, 0, 0, 1 << 3),)), *program("/bin/true"))
    assert outcome.failure is None
    assert outcome.warnings == ["can't raise ambient capability CAP_FOWNER: operation not permitted"]


def test_signals_are_reset_and_nothing_is_blocked(busybox: Path) -> None:
    found = status(busybox)
    assert int(found["SigIgn"], 16) == int(found["SigBlk"], 16) == int(found["SigCgt"], 16) == 0


def test_pipe_writer_dies_of_its_signal(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox), *shell("yes | head -n 1"))
    assert outcome.output == "y\n"
    assert outcome.status == 0


def test_death_signal_and_no_new_privileges(busybox: Path) -> None:
    assert status(busybox, ops.NoNewPrivileges())["NoNewPrivs"] == "1"


def test_names_are_of_the_uts_namespace(busybox: Path) -> None:
    operations = in_rootfs(busybox, after=(ops.Hostname("inside"), ops.Domainname("example")))
    outcome = run(*operations, *shell("hostname; cat /proc/sys/kernel/domainname"), clone=ALL)
    assert outcome.output.split() == ["inside", "example"]
    assert os.uname().nodename != "inside"


def test_sysctl_of_the_namespace(busybox: Path) -> None:
    operations = (ops.Sysctl("net/ipv4/ip_forward", "1"), ops.Sysctl("kernel/msgmax", "4096"))
    outcome = run(
        *in_rootfs(busybox, after=operations),
        *shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"),
        clone=ALL,
    )
    assert outcome.output.split() == ["1", "4096"]


@pytest.mark.parametrize("cover", ["tmpfs", "none"])
def test_sysctls_go_to_the_kernel_whatever_is_at_proc(busybox: Path, cover: str) -> None:
    """CVE-2019-16884, CVE-2025-52881: /proc of the container may be anything."""
    (busybox / "proc/sys/net/ipv4").mkdir(parents=True)
    (busybox / "proc/sys/net/ipv4/ip_forward").write_text("fake\n")
    operations = in_rootfs(busybox, after=(ops.Sysctl("net/ipv4/ip_forward", "1"),))
    operations = tuple(step for step in operations if not (isinstance(step, ops.Mount) and step.fstype == "proc"))
    outcome = run(*operations, *shell("cat /proc/sys/net/ipv4/ip_forward"), clone=ALL)
    assert outcome.failure is None
    assert (busybox / "proc/sys/net/ipv4/ip_forward").read_text() == "fake\n"


def test_sysctl_that_does_not_exist_or_leads_elsewhere(busybox: Path) -> None:
    for key in ("net/nosuch", "../self/attr/exec", "kernel/../../self/mem"):
        outcome = run(*in_rootfs(busybox, after=(ops.Sysctl(key, "1"),)), *program("/bin/true"), clone=ALL)
        assert outcome.failure is not None
        assert f"/proc/sys/{key}" in outcome.failure.attempt


def test_loopback_is_up(busybox: Path) -> None:
    outcome = run(
        ops.LoopbackUp(),
        *in_rootfs(busybox),
        *shell("ping -c 1 -W 5 127.0.0.1 | grep -c '1 packets received'"),
        clone=ALL,
    )
    assert outcome.output == "1\n"


def test_scheduling(busybox: Path) -> None:
    operations = (
        ops.Scheduler(3, 5, 0, 0, 0, 0, 0),
        ops.IoPriority(2, 7),
        ops.CpuAffinity((0,)),
        ops.OomScoreAdj(500, tolerate=False),
    )
    show = "cut -d' ' -f19,41 /proc/self/stat; grep Cpus_allowed_list /proc/self/status; cat /proc/self/oom_score_adj"
    outcome = run(*in_rootfs(busybox, after=operations), *shell(f"{show}; ionice -p $$"))
    assert outcome.output.split() == ["5", "3", "Cpus_allowed_list:", "0", "500", "best-effort:", "prio", "7"]


def test_oom_score_that_may_not_be_lowered(busybox: Path) -> None:
    lower = (ops.User(1000, 1000, (), keep_caps=False),)
    outcome = run(*lower, ops.OomScoreAdj(-1000, tolerate=True), *in_rootfs(busybox)[:0], *program("/bin/true"))
    assert outcome.failure is None
    outcome = run(*lower, ops.OomScoreAdj(-1000, tolerate=False), *program("/bin/true"))
    assert outcome.failure is not None
    assert outcome.failure.errno == errno.EACCES


def test_personality(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, after=(ops.Personality(8),)), *program("/bin/uname", "-m"))
    assert outcome.output == ("i686\n" if os.uname().machine == "x86_64" else "armv8l\n")


def test_session_keyring_is_a_new_one(busybox: Path) -> None:
    outcome = run(ops.SessionKeyring("_ses.test", ""), *in_rootfs(busybox), *program("/bin/cat", "/proc/keys"))
    assert "_ses.test" in outcome.output


def test_cgroup_is_entered_first(busybox: Path, container_id: str) -> None:
    group = Path("/sys/fs/cgroup/pids" if Path("/sys/fs/cgroup/pids").exists() else "/sys/fs/cgroup") / container_id
    group.mkdir()
    try:
        with open(group / "cgroup.procs", "wb", buffering=0) as procs:
            operations = (ops.JoinCgroup(("cgroup.0",)), *in_rootfs(busybox))
            outcome = run(*operations, *program("/bin/cat", "/proc/self/cgroup"), fds={"cgroup.0": procs.fileno()})
        assert f"/{container_id}\n" in outcome.output
    finally:
        group.rmdir()


def test_cgroup_that_refuses_is_reported(busybox: Path, tmp_path: Path) -> None:
    with open("/proc/self/cgroup", "rb") as unwritable:
        outcome = run(ops.JoinCgroup(("cgroup.0",)), *program("/bin/true"), fds={"cgroup.0": unwritable.fileno()})
    assert outcome.failure is not None
    assert "cgroup.0" in str(outcome.failure)


@requires("userns")
def test_user_namespace_with_maps_written_by_the_runtime(busybox: Path) -> None:
    def write_maps(pid: int, message: Message) -> None:
        if message.text == "maps":
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text("0 100000 65536\n")

    busybox.parent.chmod(0o755)
    operations = (ops.Sync("maps"), ops.BecomeRoot(), *in_rootfs(busybox))
    null = operations.index(next(step for step in operations if isinstance(step, ops.MakeDevice)))
    operations = (*operations[:null], operations[null]._replace(bind=True), *operations[null + 1 :])  # type: ignore[call-arg]
    outcome = run(
        *operations, *shell("id -u; cat /proc/self/uid_map"), clone=ALL | CLONE_NEWUSER, on_message=write_maps
    )
    assert outcome.failure is None
    assert outcome.output.split() == ["0", "0", "100000", "65536"]


@requires("namespace:time")
def test_stage_makes_a_time_namespace(busybox: Path) -> None:
    stage = (ops.Unshare(CLONE_NEWTIME), ops.TimeOffsets((("boottime", 1000000, 0),)))
    outcome = run(*in_rootfs(busybox), *program("/bin/cat", "/proc/uptime"), stage=stage)
    assert outcome.failure is None
    assert float(outcome.output.split()[0]) > 1000000


def test_stage_that_fails_is_reported() -> None:
    with pytest.raises(RuntimeFailure, match=r"prepare namespaces \(/0\): set time offsets monotonic .*"):
        run(*program("/bin/true"), stage=(ops.TimeOffsets((("monotonic", 1, 0),)),))
