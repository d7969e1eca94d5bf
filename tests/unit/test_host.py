"""Facts and findings from what other machines look like; the real one is in tests/kernel/test_host.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shimd.host import doctor, facts
from shimd.host.facts import Hierarchy, HostFacts
from shimd.linux import proc

HYBRID = b"""\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory
"""
PURE = b"30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
OWN = {
    "cpu,cpuacct": "/user.slice",
    "memory": "/user.slice/user-0.slice",
    "name=systemd": "/user.slice",
    "": "/user.slice/a",
}


@pytest.fixture
def look_like(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, dict[str, str]], None]:
    """Make the host's mounts and own cgroups those of another machine."""

    def set_up(mounts: bytes, own: dict[str, str]) -> None:
        entries = [entry for entry in proc.parse_mountinfo(mounts) if entry.fstype.startswith("cgroup")]
        monkeypatch.setattr(facts, "_cgroup_mounts", lambda: entries)
        monkeypatch.setattr(facts, "_is_visible", lambda _: True)
        monkeypatch.setattr(proc, "cgroup_paths", lambda _: own)

    return set_up


def test_hybrid_mode(look_like: Callable[[bytes, dict[str, str]], None]) -> None:
    look_like(HYBRID, OWN)
    mode, hierarchies, unified = facts._cgroups()
    assert mode == "hybrid"
    assert hierarchies == (
        Hierarchy(("name=systemd",), "/sys/fs/cgroup/systemd", "/user.slice"),
        Hierarchy(("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", "/user.slice"),
        Hierarchy(("memory",), "/sys/fs/cgroup/memory", "/user.slice/user-0.slice"),
    )
    assert unified is not None
    assert (unified.mount_point, unified.own_path) == ("/sys/fs/cgroup/unified", "/user.slice/a")


def test_other_modes(look_like: Callable[[bytes, dict[str, str]], None]) -> None:
    look_like(PURE, {"": "/init.scope"})
    assert facts._cgroups()[0] == "v2"
    look_like(b"\n".join(line for line in HYBRID.splitlines() if b"cgroup2" not in line), OWN)
    assert facts._cgroups()[0] == "v1"
    look_like(b"", {})
    assert facts._cgroups() == ("none", (), None)


def test_own_path_inside_a_container(look_like: Callable[[bytes, dict[str, str]], None]) -> None:
    """Without a cgroup namespace, mounts show the container's own cgroup as their root."""
    look_like(HYBRID.replace(b"0:32 / ", b"0:32 /docker/abc "), {"memory": "/docker/abc/inner"})
    assert facts._cgroups()[1] == (Hierarchy(("memory",), "/sys/fs/cgroup/memory", "/inner"),)
    assert facts._below("/docker/abc", "/docker/abc") == "/"
    assert facts._below("/docker/abc", "/docker/abcd") == "/"


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.14.0-427.el9.x86_64", (5, 14)),
        ("6.18-rc1", (6, 18)),
        ("7.0", (7, 0)),
        ("6", (6, 0)),
    ],
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert facts._version(release) == version


def test_mountinfo_is_unescaped_and_split() -> None:
    line = rb"36 35 98:0 /mnt1\0401 /mnt\0112\134x rw,noatime master:1 shared:2 - ext3 /dev/ro\040ot rw,errors=continue"
    assert proc.parse_mountinfo(line + b"\n\n") == [
        proc.MountInfo(
            36, 35, "98:0", "/mnt1 1", "/mnt\t2\\x", "rw,noatime", ("master:1", "shared:2"), "ext3", "/dev/ro ot",
            "rw,errors=continue",
        )
    ]  # fmt: skip


def test_mountinfo_without_tags_and_with_bytes_that_are_no_text() -> None:
    (entry,) = proc.parse_mountinfo(b"1 2 0:3 / /\xff - rw - tmpfs - rw")
    assert entry.tags == ("-",) or entry.options == "-"
    (plain,) = proc.parse_mountinfo(b"1 2 0:3 / /\xff rw - tmpfs none rw")
    assert (plain.tags, plain.mount_point, plain.source) == ((), "/\udcff", "none")


GOOD = HostFacts(
    kernel=(6, 18),
    release="6.18.0",
    machine="x86_64",
    cgroup_mode="v2",
    hierarchies=(),
    unified=Hierarchy(("cpu", "cpuset", "io", "memory", "pids", "hugetlb"), "/sys/fs/cgroup", "/"),
    apparmor=True,
    selinux=False,
    effective_caps=2**41 - 1,
    last_cap=40,
    euid=0,
    in_userns=False,
    seccomp_actions=("kill_process", "errno", "allow"),
    seccomp_flags=(),
    proc_kcore=True,
    systemd=True,
    namespaces=doctor.NAMESPACES,
    page_size=4096,
    cpus_online=2,
)


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({"kernel": (5, 10), "release": "5.10.0"}, "kernel", "5.10.0 lacks"),
        ({"machine": "riscv64"}, "machine", "not supported"),
        ({"euid": 1000, "effective_caps": 0}, "privileges", "uid 1000 without CAP_SYS_ADMIN"),
        ({"in_userns": True}, "privileges", "user namespace"),
        ({"cgroup_mode": "none", "unified": None}, "cgroups", "no cgroup hierarchy"),
        ({"unified": Hierarchy(("cpu", "io"), "/x", "/")}, "cgroup controllers", "memory (memory limits"),
        ({"unified": Hierarchy((), "/x", "/")}, "cgroup controllers", "none; missing"),
        ({"unified": Hierarchy((), "/x", "/")}, "swap accounting", "no memory controller"),
        ({"hierarchies": (Hierarchy(("memory",), "/missing", "/"),)}, "swap accounting", "not enforced"),
        ({"namespaces": ("mnt", "pid")}, "namespaces", "cgroup, ipc, net, time, user, uts"),
        ({"seccomp_actions": ()}, "seccomp", "no seccomp filters"),
        ({"apparmor": False}, "AppArmor or SELinux", "neither"),
        ({"effective_caps": 1 << 21}, "CAP_SYS_RESOURCE", "EPERM"),
        ({"kernel": (6, 1)}, "exit status by pidfd", "lost"),
        ({"systemd": False}, "systemd", "not running"),
    ],
)
def test_each_lack_has_a_reason_and_a_remedy(change: dict[str, Any], name: str, reason: str) -> None:
    finding = next(f for f in doctor.doctor(GOOD._replace(**change)) if f.name == name)
    assert not finding.ok
    assert reason in finding.reason
    assert finding.remedy


def test_what_the_facts_decide_is_good_on_a_good_host() -> None:
    decided = ("kernel", "machine", "privileges", "cgroups", "cgroup controllers", "namespaces", "swap accounting")
    findings = {finding.name: finding for finding in doctor.doctor(GOOD)}
    assert all(findings[name].ok and not findings[name].remedy for name in decided)
    assert len(findings) == len(doctor.doctor(GOOD))  # names are unique


def test_sysctls_that_forbid_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, str] = {}
    monkeypatch.setattr(doctor, "_sysctl", lambda key: values.get(key, ""))
    assert doctor._user_namespaces(GOOD).ok
    values["kernel/apparmor_restrict_unprivileged_userns"] = "1"
    assert "apparmor_restrict_unprivileged_userns=0" in doctor._user_namespaces(GOOD).remedy
    values["kernel/unprivileged_userns_clone"] = "0"
    assert "unprivileged_userns_clone=1" in doctor._user_namespaces(GOOD).remedy
    values["user/max_user_namespaces"] = "0"
    assert "max_user_namespaces" in doctor._user_namespaces(GOOD).remedy


def test_programs_are_looked_for_in_absolute_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "criu").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".:")
    assert not doctor._criu(GOOD).ok
    assert not doctor._id_maps(GOOD).ok
    monkeypatch.setenv("PATH", f"/missing:{tmp_path}")
    assert doctor._criu(GOOD).reason == f"{tmp_path}/criu"
