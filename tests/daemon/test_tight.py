"""Small limits and sudden ends: 6 MiB of memory, SIGPIPE, SIGKILL, a program that is not there, the OOM killer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.daemon.sidebyside import run_with_shimd
from tests.support.client import Client
from tests.support.requires import requires
from tests.support.specs import containerd_default, docker_default_seccomp, runc_default

SMALL = 6 << 20


def small(*args: str, **memory: int) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["linux"]["resources"]["memory"] = {"limit": SMALL, **memory}
    return spec


@requires("cgroup:memory")
def test_six_mebibytes_are_enough_to_run(client: Client, box: MakeBox) -> None:
    v1 = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"
    v2 = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max"
    b = box(spec=small(*shell(f"{v1} || {v2}")))
    assert run_with_shimd(client, b.bundle, b.id) == (f"{SMALL}\n", 0)


@requires("cgroup:memory")
def test_six_mebibytes_without_swap_and_with_docker_seccomp(client: Client, box: MakeBox) -> None:
    spec = small("true", swap=SMALL)
    spec["linux"]["seccomp"] = docker_default_seccomp()
    b = box(spec=spec)
    assert run_with_shimd(client, b.bundle, b.id) == ("", 0)


@requires("cgroup:memory")
def test_six_mebibytes_are_enough_to_create_start_and_exec(box: MakeBox) -> None:
    b = box(spec=small("sleep", "1000", swap=SMALL))
    b.make()
    b.start()
    for number in range(3):
        b.exec(f"e{number}", *shell(f"exit {number}"))
        b.start(f"e{number}")
        assert b.wait(f"e{number}") == number
    assert b.status() == "RUNNING"
    assert "/tasks/oom" not in b.topics()


@requires("cgroup:memory")
def test_what_init_needs_is_not_charged_to_the_container(box: MakeBox) -> None:
    b = box(spec=small("sleep", "1000"))
    b.make()
    b.start()
    request = api.StatsRequest(ids=[b.id])
    (answer,) = b.client.runtime.Stats(request)
    assert len(answer.stats) == 1
    peaks = [int(path.read_text()) for path in _peaks(b)]
    assert peaks
    assert max(peaks) < 3 << 20


def _peaks(b: Box) -> list[Path]:
    paths = b.client.runtime.Inspect(api.InspectRequest(id=b.id)).cgroup_paths
    found = [
        Path(paths.get("memory", paths.get("", ""))) / name for name in ("memory.max_usage_in_bytes", "memory.peak")
    ]
    return [path for path in found if path.exists()]


@pytest.mark.parametrize("script", ["yes | head -n 1", "cat /dev/zero | head -c 1 | wc -c"])
def test_pipelines_end_by_sigpipe(client: Client, box: MakeBox, script: str) -> None:
    b = box(*shell(f"{script}; echo ended"))
    assert run_with_shimd(client, b.bundle, b.id) in [("y\nended\n", 0), ("1\nended\n", 0)]


def test_pipeline_ends_in_an_exec_too(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    b.exec("e", *shell("yes | head -n 1 && exit 7"))
    b.start("e")
    assert b.wait("e") == 7


def test_killed_by_sigkill_is_137(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    b.exec("e", *shell("kill -9 $$"))
    b.start("e")
    assert b.wait("e") == 137
    b.kill(signal.SIGKILL)
    assert b.wait() == 137
    assert b.delete().exit_status == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_other_signals_are_128_and_more(box: MakeBox, number: int) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    b.exec("e", *shell("sleep 1000"))
    b.start("e")
    b.kill(number, "e")
    assert b.wait("e") == 128 + number


MISSING = [
    ("no-such-program", 'exec: "no-such-program": executable file not found in $PATH'),
    ("/no/such/program", 'exec: "/no/such/program": stat /no/such/program: no such file or directory'),
    ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ("/etc", 'exec: "/etc": is a directory'),
]


@pytest.mark.parametrize(("program", "words"), MISSING, ids=["by PATH", "missing", "no program", "folder"])
def test_exec_of_what_cannot_run(box: MakeBox, program: str, words: str) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    b.exec("e", program)
    with refused("UNKNOWN", words):
        b.start("e")
    b.delete("e")
    assert b.status() == "RUNNING"
    assert [entry.pid for entry in b.pids()] == [b.state().pid]


@pytest.mark.parametrize(("program", "words"), MISSING, ids=["by PATH", "missing", "no program", "folder"])
def test_create_of_what_cannot_run(box: MakeBox, program: str, words: str) -> None:
    b = box(program)
    with refused("UNKNOWN", words):
        b.make()


@requires("cgroup:memory")
def test_killed_by_the_oom_killer(client: Client, box: MakeBox) -> None:
    b = box(spec=small(*shell("tail /dev/zero"), swap=SMALL))
    events = list(client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle))))
    assert events[-1].exited.oom_killed
    assert events[-1].exited.exit_status == 137
    assert b.topics() == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"]


@requires("cgroup:memory")
def test_oom_kill_of_a_child_leaves_the_container_running(box: MakeBox) -> None:
    b = box(spec=small("sleep", "1000", swap=SMALL))
    b.make()
    b.start()
    b.exec("e", "/usr/bin/tail", "/dev/zero")
    b.start("e")
    assert b.wait("e") == 137
    assert b.status() == "RUNNING"
    assert "/tasks/oom" in b.topics()
    (found,) = b.client.runtime.List(api.ListRequest(ids=[b.id])).containers
    assert found.oom_killed


@requires("cgroup:pids")
def test_fork_bomb_is_held_by_the_limit_of_processes(client: Client, box: MakeBox) -> None:
    spec = containerd_default(*shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo not all"))
    spec["linux"]["resources"]["pids"] = {"limit": 5}
    b = box(spec=spec)
    run = run_with_shimd(client, b.bundle, b.id)
    assert "can't fork" in run.output
    assert run.code == 2
