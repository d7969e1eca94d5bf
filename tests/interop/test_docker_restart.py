"""dockerd and containerd end and come back while containers run; user namespaces for all containers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.conftest import StartDocker
from tests.interop.docker_rig import IMAGE
from tests.support import wait
from tests.support.requires import requires

COUNTER = "n=0; until test -e /end; do n=$((n+1)); echo $n; sleep 0.05; done; echo end; exit 5"


@pytest.mark.parametrize(
    ("what", "number"),
    [("dockerd", signal.SIGTERM), ("dockerd", signal.SIGKILL), ("both", signal.SIGKILL)],
    ids=["dockerd ends", "dockerd is killed", "both are killed"],
)
def test_containers_outlive(start_docker: StartDocker, what: str, number: signal.Signals) -> None:
    docker = start_docker()
    docker.detached("counter", IMAGE, "sh", "-c", COUNTER)
    docker.detached("ends", IMAGE, "sh", "-c", "until test -e /end; do sleep 0.05; done; exit 6")
    docker.detached("again", "--restart", "always", IMAGE, "sleep", "1000")
    pids = {name: docker.pid(name) for name in ("counter", "ends", "again")}
    docker.await_output(("logs", "--follow", "counter"), "3\n")
    docker.stop(number)
    if what == "both":
        docker.stop_containerd(number)
    end_of_ends(pids["ends"])
    if what == "dockerd":  # the exit that a containerd publishes late races in dockerd with the restart
        os.kill(pids["again"], signal.SIGKILL)
        wait.process_gone(pids["again"])
    if what == "both":
        docker.start_containerd()
    docker.start()

    assert docker.pid("counter") == pids["counter"]
    # A containerd from 1.7 on deletes at its start what has ended by then: dockerd may come too late for the code.
    codes = {"6"} if what == "dockerd" or docker.setup.containerd == "1.6" else {"6", "255"}
    assert docker("wait", "ends") in codes
    if what == "dockerd":
        docker.await_event("again", "start")
    assert docker.inspect("again", "{{.State.Running}}") == "true"
    docker("exec", "counter", "touch", "/end")
    assert docker("wait", "counter") == "5"
    numbers = docker("logs", "counter").splitlines()
    assert numbers == [*map(str, range(1, len(numbers))), "end"]


def end_of_ends(pid: int) -> None:
    Path(f"/proc/{pid}/root/end").touch()
    wait.process_gone(pid)


@contextmanager
def subordinate_ids(folder: Path, text: str) -> Iterator[None]:
    """In /etc/subuid and /etc/subgid: over which a file is mounted, as this test run's mounts are its own."""
    file = folder / "subids"
    file.write_text(text)
    file.chmod(0o644)
    places = ("/etc/subuid", "/etc/subgid")
    for place in places:
        subprocess.run(["mount", "--bind", str(file), place], check=True)
    try:
        yield
    finally:
        for place in places:
            subprocess.run(["umount", place], check=True)


@pytest.mark.core
@requires("userns", "file:/etc/subuid", "file:/etc/subgid")
def test_user_namespace(start_docker: StartDocker, tmp_path: Path) -> None:
    with subordinate_ids(tmp_path, "nobody:200000:65536\nnogroup:200000:65536\n"):
        docker = start_docker("--userns-remap=nobody:nogroup")
        docker.sleeper("box", "--env", "A=1", "--memory", "64m", "--tmpfs", "/scratch")
        pid = docker.pid("box")
        assert os.stat(f"/proc/{pid}").st_uid == 200_000
        assert docker("exec", "box", "sh", "-c", "id -u; cat /proc/self/uid_map").split() == [
            "0",
            "0",
            "200000",
            "65536",
        ]
        assert docker("exec", "--user", "1000", "box", "id", "-u") == "1000"
        docker("exec", "box", "sh", "-c", "touch /new /scratch/new; test $(stat -c %u /bin/busybox) = 0")
        assert docker.run("--userns=host", IMAGE, "cat", "/proc/self/uid_map").stdout.split()[1] == "0"
        docker("restart", "box")
        docker("rm", "--force", "box")
