"""containerd comes back, or the daemon goes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.containerd.rig import IS_RUNC, LAUNCHER, NAMESPACE, Containerd
from tests.containerd.test_events import listening
from tests.support import wait

of_shimd = pytest.mark.skipif(IS_RUNC, reason="about the daemon of shimd")


def launcher(containerd: Containerd, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([LAUNCHER, *arguments], env=containerd.environment, capture_output=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_are_found_again(own_containerd: Containerd, name: str, number: signal.Signals) -> None:
    ends_later, ends_meanwhile, is_killed = f"{name}-1", f"{name}-2", f"{name}-3"
    own_containerd.detached(ends_later, "sh", "-c", "until test -e /stop; do sleep 0.05; done; sleep 1; exit 5")
    own_containerd.detached(ends_meanwhile, "sh", "-c", "until test -e /stop; do sleep 0.05; done; exit 6")
    own_containerd.detached(is_killed, "sleep", "1000")
    before = own_containerd.tasks()
    own_containerd.stop(number)
    Path(f"/proc/{before[ends_meanwhile][0]}/root/stop").touch()
    os.kill(before[is_killed][0], signal.SIGKILL)
    for container in (ends_meanwhile, is_killed):
        wait.process_gone(before[container][0])
    own_containerd.start()
    assert own_containerd.tasks()[ends_later] == before[ends_later]
    with listening(own_containerd) as listener:
        own_containerd.ctr("tasks", "exec", "--exec-id", "e1", ends_later, "touch", "/stop")
        ends_with(own_containerd, ends_later, 5)
        assert listener.exits(ends_later) == [("e1", 0), (ends_later, 5)]
    # From 1.7 on containerd has the shim remove a task that ended meanwhile.
    if ends_meanwhile in own_containerd.tasks():
        ends_with(own_containerd, ends_meanwhile, 6)
        ends_with(own_containerd, is_killed, 137)
    for container in (ends_later, ends_meanwhile, is_killed):
        assert container not in own_containerd.tasks()
        own_containerd.ctr("containers", "rm", container)


def ends_with(containerd: Containerd, name: str, code: int) -> None:
    containerd.await_stopped(name)
    assert f"exit code {code}" in containerd.try_ctr("tasks", "delete", name).stderr


@of_shimd
def test_launcher_starts_a_daemon_that_is_no_part_of_containerd(own_containerd: Containerd, name: str) -> None:
    own_containerd.end_daemon()
    assert own_containerd.run(name, "echo", "hello", flags=["--rm"]).stdout == "hello\n"
    pid = own_containerd.daemon_pid()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()} == {"/"}
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(own + 1, 1000)
    assert own_containerd.run(name, "true", flags=["--rm"]).returncode == 0
    assert own_containerd.daemon_pid() == pid


@of_shimd
def test_launcher_removes_a_container_whose_daemon_is_gone(own_containerd: Containerd, name: str) -> None:
    own_containerd.detached(name, "sleep", "1000")
    pid = own_containerd.tasks()[name][0]
    bundle = own_containerd.folder / "state/io.containerd.runtime.v2.task" / NAMESPACE / name
    own_containerd.stop()
    own_containerd.daemon.kill()
    done = launcher(own_containerd, "-namespace", NAMESPACE, "-id", name, "-bundle", str(bundle), "delete")
    own_containerd.daemon.start()
    own_containerd.start()
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x10\x89\x01" in done.stdout  # field 2, exit_status: 137
    wait.process_gone(pid)
    assert not (own_containerd.daemon.state / "containers" / NAMESPACE / name).exists()
    assert not os.path.ismount(bundle / "rootfs")
    assert name not in own_containerd.tasks()
    own_containerd.ctr("containers", "rm", name)
