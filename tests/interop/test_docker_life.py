"""A container's life under Docker: start, stop, kill, restart, pause, health, running out of memory, events, state."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.interop.docker_rig import IMAGE, Docker

TRAPS = (
    "trap 'echo hup' HUP; trap 'echo usr1; exit 8' USR1; trap 'echo term; exit 3' TERM; echo ready;"
    " while :; do sleep 1000 & wait $!; done"
)


def await_log(docker: Docker, name: str, text: str) -> None:
    """Until the container has printed it."""
    docker.await_output(("logs", "--follow", name), text)


@pytest.mark.core
def test_state_over_a_life(docker: Docker, name: str) -> None:
    state = "{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}"
    with docker.removed(name):
        docker(*("create", *docker.run_arguments("--name", name, "--interactive", IMAGE, "sh")[1:]))
        assert docker.inspect(name, state) == "created false 0"
        docker("start", name)
        assert docker.inspect(name, state) == "running true 0"
        pid = docker.pid(name)
        with open(f"/proc/{pid}/comm") as file:
            assert file.read() == "sh\n"
        done = docker.attempt("attach", name, stdin="exit 9\n")
        assert done.returncode == 9
        assert docker.inspect(name, state) == "exited false 9"
        assert docker.pid(name) == 0
        assert docker.inspect(name, "{{.State.FinishedAt}}") > docker.inspect(name, "{{.State.StartedAt}}")


@pytest.mark.core
def test_stop_lets_the_program_end_by_itself(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, IMAGE, "sh", "-c", TRAPS)
        await_log(docker, name, "ready")
        docker("stop", name)
        assert docker.inspect(name, "{{.State.ExitCode}}") == "3"
        assert docker("logs", name) == "ready\nterm"


def test_stop_sends_the_signal_of_the_container(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, "--stop-signal", "USR1", IMAGE, "sh", "-c", TRAPS)
        await_log(docker, name, "ready")
        docker("stop", name)
        assert docker.inspect(name, "{{.State.ExitCode}}") == "8"


def test_stop_kills_what_does_not_end(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, IMAGE, "sleep", "1000")  # as pid 1 without a handler it ignores SIGTERM
        docker("stop", "--time", "1", name)
        assert docker.inspect(name, "{{.State.ExitCode}} {{.State.OOMKilled}}") == "137 false"


@pytest.mark.core
def test_kill_sends_any_signal(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, IMAGE, "sh", "-c", TRAPS)
        await_log(docker, name, "ready")
        docker("kill", "--signal", "HUP", name)
        await_log(docker, name, "hup")
        docker("kill", name)
        assert docker("wait", name) == "137"
        refused = docker.attempt("kill", name)
        assert refused.returncode == 1
        assert "is not running" in refused.stderr


@pytest.mark.core
def test_restart_keeps_the_files(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name)
        before = docker.pid(name)
        docker("exec", name, "touch", "/kept")
        docker("restart", name)
        assert docker.pid(name) not in (0, before)
        docker("exec", name, "test", "-e", "/kept")
        docker("stop", name)
        docker("start", name)
        docker("exec", name, "test", "-e", "/kept")


def test_container_that_could_not_start_can_be_started_later(docker: Docker, name: str) -> None:
    with docker.removed(name):
        failed = docker.attempt(*docker.run_arguments("--name", name, IMAGE, "/mnt/true"))
        assert failed.returncode == 127
        assert docker.inspect(name, "{{.State.Status}} {{.State.ExitCode}}") == "created 127"
        docker("cp", f"{name}:/bin/busybox", f"{docker.folder}/busybox")
        docker("cp", f"{docker.folder}/busybox", f"{name}:/mnt/true")
        docker("start", name)
        assert docker("wait", name) == "0"


def test_restart_policy_on_failure(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo try; exit 4")
        docker.await_event(name, "die", times=3)
        docker("wait", name)
        assert docker.inspect(name, "{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}}") == "2 4 exited"
        assert docker("logs", name) == "try\ntry\ntry"


def test_restart_policy_always(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, "--restart", "always", IMAGE, "sleep", "1000")
        os.kill(docker.pid(name), signal.SIGKILL)
        docker.await_event(name, "start", times=2)
        assert docker.inspect(name, "{{.RestartCount}} {{.State.Running}}") == "1 true"
        docker("kill", name)
        docker("wait", name)
        assert docker.inspect(name, "{{.State.Running}}") == "false"


@pytest.mark.core
def test_pause(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name)
        docker("pause", name)
        assert docker.inspect(name, "{{.State.Status}}") == "paused"
        refused = docker.attempt("exec", name, "true")
        assert refused.returncode == 1
        assert "paused" in refused.stderr
        docker("unpause", name)
        docker("exec", name, "true")
        docker("pause", name)
        docker("kill", name)
        docker("wait", name)
        assert docker.inspect(name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"


def test_commit_of_a_running_container(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name)
        docker("exec", name, "touch", "/new")
        docker("commit", name, f"{name}:made")
        assert docker.inspect(name, "{{.State.Status}}") == "running"
    assert docker.run(f"{name}:made", "ls", "/new").stdout == "/new\n"
    docker("rmi", f"{name}:made")


@pytest.mark.core
def test_running_out_of_memory_is_reported(docker: Docker, name: str) -> None:
    with docker.removed(name):
        limits = ("--memory", "16m", "--memory-swap", "16m")
        if docker.setup.has_daemon:
            docker.detached(name, *limits, IMAGE, "tail", "/dev/zero")
        else:
            # runc's shim begins to watch after the start, and misses what happens at once; and what it tells of after
            # the exit Docker does not put down.
            wait = "until test -e /{}; do sleep 0.05; done"
            script = f"{wait.format('go')}; tail /dev/zero; {wait.format('told')}; exit 137"
            docker.detached(name, *limits, IMAGE, "sh", "-c", script)
            docker("exec", name, "touch", "/go")
            docker.await_event(name, "oom")
            docker("exec", name, "touch", "/told")
        assert docker("wait", name) == "137"
        docker.await_event(name, "oom")
        assert docker.inspect(name, "{{.State.OOMKilled}} {{.State.ExitCode}}") == "true 137"


@pytest.mark.core
def test_health(docker: Docker, name: str) -> None:
    with docker.removed(name):
        flags = ("--health-cmd", "echo looked; test -e /tmp/ok", "--health-interval", "100ms", "--health-retries", "1")
        docker.sleeper(name, *flags)
        docker.await_event(name, "health_status: unhealthy")
        docker("exec", name, "touch", "/tmp/ok")
        docker.await_event(name, "health_status: healthy")
        health = json.loads(docker.inspect(name, "{{json .State.Health}}"))
        assert health["Status"] == "healthy"
        assert {(entry["ExitCode"], entry["Output"]) for entry in health["Log"]} <= {(0, "looked\n"), (1, "looked\n")}


def test_events(docker: Docker, name: str) -> None:
    docker.detached(name, IMAGE, "sh", "-c", "read x; exit 6")  # the standard input is /dev/null
    docker("wait", name)
    docker("rm", name)
    docker.await_event(name, "destroy")
    kinds = ("create", "start", "die", "destroy")
    assert [event for event in docker.events(name) if event in kinds] == list(kinds)


@pytest.mark.parametrize("number", range(3))
def test_removal_by_force(docker: Docker, name: str, number: int) -> None:
    """Of one that lives, that is paused, and that was only created."""
    docker("create", *docker.run_arguments("--name", name, IMAGE, "sleep", "1000")[1:])
    if number < 2:
        docker("start", name)
    if number == 1:
        docker("pause", name)
    docker("rm", "--force", name)
    assert docker("ps", "--all", "--quiet") == ""
