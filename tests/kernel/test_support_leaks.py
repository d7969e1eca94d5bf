"""The leak check finds what a test leaves on the machine: mounts, cgroups, processes of no parent."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import leaks, session, wait

SCOPE = leaks.Scope(machine=True, alone=False)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> leaks.Snapshot:
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.05)
    return leaks.take(SCOPE)


def test_a_mount_is_reported(before: leaks.Snapshot, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    (found,) = leaks.leaked(before, SCOPE)
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert found.startswith("mounts: ")
    assert found.endswith(f"{tmp_path} (tmpfs)")


def test_a_cgroup_of_this_run_is_reported(before: leaks.Snapshot) -> None:
    cgroup = Path(leaks.cgroup_mount_points()[-1]) / session.TAG
    cgroup.mkdir()
    found = leaks.leaked(before, SCOPE)
    cgroup.rmdir()
    assert found == [f"cgroups: {cgroup}"]


def test_an_empty_cgroup_is_reported_when_no_other_run_can_have_made_it(before: leaks.Snapshot) -> None:
    cgroup = Path(leaks.cgroup_mount_points()[-1]) / f"left-{os.getpid()}"
    cgroup.mkdir()
    shared = leaks.leaked(before, SCOPE)
    alone = leaks.leaked(before, SCOPE._replace(alone=True))
    cgroup.rmdir()
    assert shared == []
    assert f"cgroups: {cgroup}" in alone


def test_an_orphan_in_namespaces_of_its_own_is_reported(before: leaks.Snapshot) -> None:
    script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    command = ["unshare", "--mount", "--net", "--uts", "sh", "-c", script]
    pid = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pidfd = os.pidfd_open(pid)
    found = leaks.leaked(before, SCOPE)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait.exited(pidfd)
    os.close(pidfd)
    assert any(line.startswith(f"processes: {pid} ") for line in found)
