"""The leak check finds what a test leaves on the machine: mounts, cgroups, processes of no parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
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


@contextlib.contextmanager
def namespace_with_orphan_of_outside() -> Iterator[tuple[int, int]]:
    """pidfds of the first process of a pid namespace, and of a child of process 1 in it."""
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(
            subprocess.Popen(
                ["unshare", "--pid", "--fork", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE
            )
        )
        first = only_child(outside)
        joined = ["nsenter", f"--pid=/proc/{first}/ns/pid", "sh", "-c", "echo; exec sleep 1000"]
        with subprocess.Popen(joined, stdout=subprocess.PIPE) as joining:
            orphan = only_child(joining)
            joining.kill()
        pidfds = os.pidfd_open(first), os.pidfd_open(orphan)
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        stack.callback(signal.pidfd_send_signal, pidfds[0], signal.SIGKILL)
        yield pidfds


def only_child(process: subprocess.Popen[bytes]) -> int:
    """Once it has written a line."""
    assert process.stdout is not None
    process.stdout.readline()
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def test_what_only_waits_for_process_1_is_not_reported(before: leaks.Snapshot) -> None:
    """It takes up to two seconds to reap, and longer on a busy machine."""
    with namespace_with_orphan_of_outside() as (first, orphan):
        known = leaks.take(SCOPE)
        signal.pidfd_send_signal(first, signal.SIGKILL)
        wait.exited(orphan)
        assert [line for line in leaks.marked_processes() if "sleep" in line] == []
    assert known.processes > before.processes


def test_what_lives_beside_an_orphan_that_process_1_has_yet_to_reap_is_reported(before: leaks.Snapshot) -> None:
    with namespace_with_orphan_of_outside() as (_, orphan):
        signal.pidfd_send_signal(orphan, signal.SIGKILL)
        wait.exited(orphan)
        names = [line.split()[-1] for line in leaks.leaked(before, SCOPE) if line.startswith("processes: ")]
        assert sorted(names) == ["sleep", "unshare"]
