"""Docker on cgroup v2, with systemd's cgroup driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.docker_rig import IMAGE, Docker
from tests.lab.systemd_rig import ABSENT, CGROUPS, show

pytestmark = pytest.mark.lab("systemd")


def test_a_whole_life(docker: Docker, name: str) -> None:
    assert docker("info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}") == "systemd 2"
    with docker.removed(name):
        docker.detached(name, "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", IMAGE, "sleep", "1000")
        unit = f"docker-{docker.inspect(name, '{{.Id}}')}.scope"
        cgroup = CGROUPS / "system.slice" / unit
        assert show(unit, "MemoryMax", "TasksMax") == {"MemoryMax": str(64 << 20), "TasksMax": "50"}
        assert (cgroup / "cgroup.procs").read_text() == f"{docker.pid(name)}\n"
        assert (cgroup / "cpu.max").read_text() == "50000 100000\n"
        assert docker("exec", name, "cat", "/proc/self/cgroup", "/sys/fs/cgroup/pids.max") == "0::/\n50"
        docker("update", "--memory", "48m", "--memory-swap", "48m", name)
        assert (cgroup / "memory.max").read_text() == f"{48 << 20}\n"
        docker("pause", name)
        assert "frozen 1" in (cgroup / "cgroup.events").read_text()
        docker("unpause", name)
        docker("stop", "--time", "0", name)
        assert docker.inspect(name, "{{.State.ExitCode}}") == "137"
    assert show(unit, "LoadState") == ABSENT
    assert not cgroup.exists()


def test_memory_hogs_are_told_of(docker: Docker, name: str) -> None:
    if not docker.setup.has_daemon:
        pytest.skip("runc's shim begins to watch after the start, and misses what happens at once")
    with docker.removed(name):
        docker.detached(name, "--memory", "16m", "--memory-swap", "16m", IMAGE, "tail", "/dev/zero")
        assert docker("wait", name) == "137"
        assert docker.inspect(name, "{{.State.OOMKilled}}") == "true"


def test_privileged(docker: Docker) -> None:
    command = "grep -c . /proc/self/cgroup; ls -d /sys/fs/cgroup/cgroup.procs; ls -l /dev/loop-control | cut -c1"
    done = docker.run("--privileged", IMAGE, "sh", "-c", command)
    assert (done.stdout, done.stderr) == ("1\n/sys/fs/cgroup/cgroup.procs\nc\n", "")
    assert not Path("/sys/fs/cgroup/docker").exists()
