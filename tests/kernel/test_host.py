"""Facts of the machine that the tests run on, and of views of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shimd.host import doctor
from shimd.host.facts import HostFacts, probe
from shimd.linux import mount as m
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWUSER
from tests.kernel.child import run_in_child


def test_probe_agrees_with_the_machine() -> None:
    facts = probe()
    assert facts.release.startswith(f"{facts.kernel[0]}.{facts.kernel[1]}")
    assert (facts.euid, facts.in_userns) == (0, False)
    assert facts.has_cap(21)
    assert {"mnt", "pid", "net", "ipc", "uts", "user", "cgroup"} <= set(facts.namespaces)
    assert "errno" in facts.seccomp_actions
    assert "SECCOMP_FILTER_FLAG_LOG" in facts.seccomp_flags
    assert facts.cgroup_mode in ("v1", "hybrid", "v2")
    for hierarchy in (*facts.hierarchies, *((facts.unified,) if facts.unified else ())):
        procs = Path(hierarchy.mount_point + hierarchy.own_path, "cgroup.procs")
        assert str(os.getpid()) in procs.read_text().split()


def test_probe_is_cheap() -> None:
    probe()
    best = min(_timed() for _ in range(10))
    assert best < 0.003, f"{best * 1000:.2f} ms"


def _timed() -> float:
    start = time.perf_counter()
    probe()
    return time.perf_counter() - start


def test_pure_v2_view() -> None:
    def check() -> None:
        while m.is_mount_point("/sys/fs/cgroup"):
            m.umount2("/sys/fs/cgroup", m.MNT_DETACH)
        m.mount("none", "/sys/fs/cgroup", "cgroup2", 0)
        facts = probe()
        assert (facts.cgroup_mode, facts.hierarchies, facts.unified_mount) == ("v2", (), "/sys/fs/cgroup")
        m.mount("none", "/sys/fs/cgroup", "tmpfs", 0)  # covers it
        assert probe().cgroup_mode == "none"

    run_in_child(check, CLONE_NEWNS)


def test_user_namespace_is_noticed() -> None:
    def check() -> None:
        assert probe().in_userns

    run_in_child(check, CLONE_NEWUSER)


def test_doctor_tries_what_the_facts_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = probe()
    findings = {finding.name: finding for finding in doctor.doctor(facts)}
    for name in ("kernel", "cgroups", "namespaces", "seccomp", "protection of the own binary", "device rules"):
        assert findings[name].ok, findings[name]
    assert all(bool(finding.remedy) != finding.ok for finding in findings.values())
    without_v1: HostFacts = facts._replace(hierarchies=())
    assert "eBPF" in doctor._devices(without_v1).reason

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(1, "refused")

    monkeypatch.setattr("shimd.linux.bpf.prog_load", refuse)
    assert "refused" in doctor._devices(without_v1).reason
    monkeypatch.setattr(doctor, "fsopen", refuse)
    assert not doctor._overlayfs(facts).ok
    monkeypatch.setattr("shimd.linux.selfexe.read_only_clone", refuse)
    assert "sealed copy" in doctor._own_binary(facts).reason
    monkeypatch.setattr("shimd.linux.selfexe.sealed_copy", refuse)
    assert not doctor._own_binary(facts).ok
