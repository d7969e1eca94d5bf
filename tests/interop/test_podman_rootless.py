"""Podman with shimrun as its OCI runtime, as an ordinary user with ranges of subordinate ids."""

from __future__ import annotations

import os

from tests.interop.podman_rig import IMAGE, USER, Podman
from tests.support.terminal import Terminal


def test_ids_and_exit_code(rootless: Podman) -> None:
    done = rootless.run(IMAGE, "sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines() == ["0", f" 0 {USER.uid} 1", " 1 300000 65536"]
    assert rootless("ps", "--all", "--quiet") == ""


def test_user_of_the_container_is_a_subordinate_one(rootless: Podman, name: str) -> None:
    with rootless.removed(name):
        rootless.detached(name, "--user", "1000", IMAGE, "sleep", "1000")
        pid = rootless.inspect(name, "{{.State.Pid}}")
        assert os.stat(f"/proc/{pid}").st_uid == 300_999
        assert rootless("exec", name, "id", "-u") == "1000"
        assert rootless.attempt("exec", name, "sh", "-c", "exit 4").returncode == 4
        rootless("kill", "--signal", "USR1", name)
        rootless("stop", "--time", "0", name)
        assert rootless.inspect(name, "{{.State.ExitCode}}") == "137"


def test_same_id_inside(rootless: Podman) -> None:
    done = rootless.run("--userns", "keep-id", IMAGE, "sh", "-c", "id -u")
    assert (done.returncode, done.stdout) == (0, f"{USER.uid}\n")


def test_volume_belongs_to_the_user(rootless: Podman) -> None:
    volume = rootless.folder / "tmp" / "volume"
    volume.mkdir()
    os.chown(volume, USER.uid, USER.uid)
    rootless.run("--volume", f"{volume}:/data", IMAGE, "touch", "/data/made")
    assert (volume / "made").stat().st_uid == USER.uid


def test_logs_of_what_has_ended(rootless: Podman, name: str) -> None:
    with rootless.removed(name):
        rootless.detached(name, IMAGE, "sh", "-c", "seq 1 500; exit 2")
        assert rootless("wait", name) == "2"
        assert rootless("logs", name).splitlines() == [str(number) for number in range(1, 501)]


def test_terminal(rootless: Podman) -> None:
    command = rootless.command(*rootless.run_arguments("--rm", "-it", IMAGE, "sh"))
    with Terminal(command, rows=30, columns=99, env=rootless.environment) as terminal:
        terminal.read_until("# ")
        terminal.type("while test \"$(stty size)\" != '30 99'; do sleep 0.05; done; echo si''zed; exit 6\n")
        terminal.read_until("sized")
        assert terminal.wait() == 6


def test_host_network(rootless: Podman) -> None:
    done = rootless.run("--network", "host", IMAGE, "readlink", "/proc/self/ns/net")
    assert done.stdout == f"{os.readlink('/proc/self/ns/net')}\n"


def test_health(rootless: Podman, name: str) -> None:
    with rootless.removed(name):
        health = ("--health-cmd", "test -e /ok", "--health-interval", "disable")
        rootless.detached(name, *health, IMAGE, "sleep", "1000")
        assert rootless.attempt("healthcheck", "run", name).returncode == 1
        rootless("exec", name, "touch", "/ok")
        rootless("healthcheck", "run", name)


def test_pod(rootless: Podman, name: str) -> None:
    with rootless.pod(name):
        rootless("run", "--detach", "--pod", name, "--name", f"{name}-a", IMAGE, "sleep", "1000")
        network = ("readlink", "/proc/self/ns/net")
        assert rootless("exec", f"{name}-a", *network) == rootless("run", "--rm", "--pod", name, IMAGE, *network)


def test_build(rootless: Podman, name: str) -> None:
    rootless.build(name)
    assert rootless.run(f"localhost/{name}").stdout == "built by root\n"
    rootless("rmi", f"localhost/{name}")
