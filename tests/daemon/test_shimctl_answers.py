"""What shimctl says: tables, JSON, events, logs, completion; and one or two lines for each failure."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.commands import Shimctl
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.specs import runc_default


@pytest.fixture
def folder(place: Path, busybox: Path) -> Path:
    """A bundle whose program says something on both streams and waits for its end."""
    script = "echo said; echo complained >&2; exec sleep 1000"
    return make_bundle(place / "bundle", runc_default("/bin/sh", "-c", script), busybox)


def test_life_by_single_verbs(shimctl: Shimctl, folder: Path) -> None:
    assert shimctl("create", "--bundle", str(folder), "box").stdout == "box\n"
    assert shimctl.json("state", "box")["status"] == "created"
    assert shimctl("start", "box").stdout == "box\n"
    assert shimctl.json("state", "box")["status"] == "running"
    shimctl("pause", "box")
    assert shimctl.json("state", "box")["status"] == "paused"
    shimctl("resume", "box")
    shimctl("update", "--pids-limit", "77", "box")
    script = "cd /sys/fs/cgroup; cat pids/pids.max || cat .$(cut -d: -f3 /proc/self/cgroup)/pids.max"
    assert shimctl("exec", "box", "sh", "-c", script).stdout == "77\n"
    shimctl("kill", "--signal", "KILL", "box")
    shimctl("wait", "box", code=137)
    assert shimctl("delete", "box").stdout == "box\n"
    assert shimctl("list", "--quiet").stdout == ""


def test_tables(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    header, row = shimctl("list").stdout.splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "CREATED", "COMMAND"]
    assert row.split()[0] == "box"
    assert row.split()[-2:] == ["sleep", "1000"]
    assert header.index("COMMAND") == row.index("sleep 1000")
    header, row = shimctl("list", "--all-namespaces").stdout.splitlines()
    assert row.split()[0] == shimctl.variables["SHIMD_NAMESPACE"]
    header, row = shimctl("stats").stdout.splitlines()
    assert header.split()[0] == "ID"
    assert row.split()[0] == "box"
    assert "sleep 1000" in shimctl("pids", "box").stdout
    assert "running" in shimctl("state", "box").stdout
    assert "keeper_pid" in shimctl("version").stdout


def test_execs_are_listed(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    assert shimctl("exec", "--detach", "--id", "more", "box", "sleep", "2000").stdout == "more\n"
    lines = shimctl("list", "--execs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "box", "more"]
    assert {entry["exec_id"] for entry in shimctl.json("pids", "box")} == {"", "more"}
    shimctl("kill", "--exec", "more", "--signal", "9", "box")
    shimctl("wait", "--exec", "more", "box", code=137)
    shimctl("delete", "--exec", "more", "box")


@pytest.mark.parametrize(
    "verb",
    [
        ("list",),
        ("state", "box"),
        ("inspect", "box"),
        ("pids", "box"),
        ("stats",),
        ("features",),
        ("version",),
        ("plan", "--rootfs", "/", "true"),
    ],
    ids=lambda verb: str(verb[0]),
)
def test_json_for_programs(shimctl: Shimctl, verb: Sequence[str]) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    assert shimctl.json(*verb)


def test_json_of_verbs_that_do_something(shimctl: Shimctl, folder: Path) -> None:
    created = shimctl.json("create", "--bundle", str(folder), "box")
    assert created["id"] == "box"
    assert created["pid"] > 0
    detached = shimctl.json(*shimctl.in_rootfs("true", options=("--detach", "--id", "other")))
    assert detached["id"] == "other"
    findings = json.loads(shimctl("--output", "json", "doctor", code=None).stdout)
    assert {"name", "ok", "reason", "remedy"} <= set(findings[0])


def test_plan_and_timing(shimctl: Shimctl) -> None:
    steps = shimctl("plan", "--rootfs", shimctl.rootfs, "--memory", "64m", "true").stdout.splitlines()
    assert len(steps) > 20
    assert steps[0].split()[0] == "1"
    assert shimctl("list", "--quiet").stdout == ""
    assert " ms\n" in shimctl(*shimctl.in_rootfs("true", options=("--timing",))).stderr


def test_options_that_change_the_config(shimctl: Shimctl, place: Path) -> None:
    (place / "data").mkdir()
    (place / "data/file").write_text("mounted\n")
    options = (
        *("--env", "A=b", "--cwd", "/home", "--user", "1000:1001", "--hostname", "box", "--cap-drop", "ALL"),
        *("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--volume", f"{place}/data:/mnt:ro"),
    )
    script = (
        "echo $A; pwd; id -u; id -g; hostname; cd /sys/fs/cgroup;"
        " cat memory/memory.limit_in_bytes memory.max cpu/cpu.cfs_quota_us cpu.max pids/pids.max pids.max;"
        " cat /mnt/file; touch /mnt/new"
    )
    done = shimctl(*shimctl.in_rootfs("sh", "-c", script, options=options), code=1)
    found = done.stdout.split()
    assert found[:5] == ["b", "/home", "1000", "1001", "box"]
    assert {str(64 << 20), "50000", "50", "mounted"} <= set(found)
    assert "Read-only file system" in done.stderr


def test_events(shimctl: Shimctl) -> None:
    with shimctl.begin("--output", "json", "events", "--since", "1", "box") as process:
        shimctl(*shimctl.in_rootfs("true", options=("--id", "box")))
        shimctl(*shimctl.in_rootfs("true", options=("--id", "other")))
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.terminate()
        assert process.wait(wait.SECONDS) == 143
    assert [event["topic"] for event in seen] == [f"/tasks/{what}" for what in ("create", "start", "exit", "delete")]
    lines = shimctl("events", "--replay", "--topic", "/tasks/exit").stdout.splitlines()
    assert len(lines) == 2
    assert "container_id=box" in lines[0]


def test_logs(shimctl: Shimctl, folder: Path, place: Path) -> None:
    log, errors = place / "log", place / "errors"
    shimctl("create", "-b", str(folder), "--stdout", f"file://{log}", "--stderr", f"file://{errors}", "box")
    with shimctl.begin("logs", "--follow", "box") as process:
        shimctl("start", "box")
        assert process.stdout is not None
        assert process.stdout.readline() == b"said\n"
        assert process.poll() is None
        with open(log, "ab") as file:
            file.write(b"x" * 100_000 + b"\n")
        assert len(process.stdout.readline()) == 100_001
        shimctl("kill", "-s", "9", "box")
        assert process.wait(wait.SECONDS) == 0
    assert shimctl("logs", "--stderr", "box").stdout == "complained\n"
    shimctl("delete", "box")


def test_top(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    with shimctl.begin("--output", "json", "top", "--interval", "0.1") as process:
        assert process.stdout is not None
        rounds = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(wait.SECONDS) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert [[entry["id"] for entry in found] for found in rounds] == [["box"]] * 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("shimctl kill box", {"box-one", "box-two"}),
        ("shimctl exec ot", {"other"}),
        ("shimctl sta", {"start", "state", "stats"}),
    ],
)
def test_completion(shimctl: Shimctl, words: str, expected: set[str]) -> None:
    for name in ("box-one", "box-two", "other"):
        shimctl.daemonized(name, "sleep", "1000")
    shimctl.variables |= {
        "_SHIMCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    assert {entry.partition(",")[2] for entry in shimctl().stdout.split()} == expected


FAILURES = [
    (("start", "nobody"), "container nobody not found"),
    (("exec", "nobody", "true"), "container nobody not found"),
    (("logs", "nobody"), "container nobody not found"),
    (("attach", "nobody"), "container nobody not found"),
    (("inspect", "nobody"), "container nobody not found"),
    (("wait", "nobody"), "container nobody not found"),
    (("stats", "nobody"), "container nobody not found"),
    (("delete", "box"), "cannot delete a running container"),
    (("start", "box"), "cannot start a running process"),
    (("logs", "box"), "does not go to a file"),
    (("run", "--id", "box", "--rootfs", "{rootfs}", "true"), "box already exists"),
    (("run", "--id", "not/allowed", "--rootfs", "{rootfs}", "true"), "not/allowed"),
    (("run", "--rootfs", "/no/such/folder", "true"), "/no/such/folder"),
    (("run", "--bundle", "/no/such/folder"), "no config.json"),
    (("run", "--rootfs", "{rootfs}", "nowhere"), "executable file not found"),
    (("run", "--rootfs", "{rootfs}", "--cwd", "relative", "true"), "/process/cwd"),
    (("run", "--rootfs", "{rootfs}", "--volume", "/no/such/source:/mnt", "true"), "/no/such/source"),
    (("create", "--bundle", "{rootfs}", "new"), "config.json"),
    (("exec", "box", "nowhere"), "executable file not found"),
    (("exec", "--cwd", "relative", "box", "true"), "cwd"),
    (("kill", "--exec", "none", "box"), "none"),
    (("update", "--memory", "8m", "--memory-swap", "4m", "box"), "memory"),
    (("resume", "box"), "running"),
]


@pytest.mark.parametrize(
    ("command", "words"), FAILURES, ids=lambda value: str(value[:2]) if isinstance(value, tuple) else ""
)
def test_failures_are_one_or_two_lines(shimctl: Shimctl, command: Sequence[str], words: str) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    done = shimctl(*(part.format(rootfs=shimctl.rootfs) for part in command), code=None)
    assert done.returncode in (1, 125, 127), done
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert lines[0].startswith("shimctl: ")
    assert words in done.stderr
    assert [found.id for found in shimctl.client.runtime.List(api.ListRequest()).containers] == ["box"]


def test_several_ids_and_one_failure(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    done = shimctl("delete", "--force", "nobody", "box", code=1)
    assert done.stdout == "box\n"
    assert done.stderr == f"shimctl: container nobody not found in namespace {shimctl.variables['SHIMD_NAMESPACE']}\n"
    assert shimctl("list", "--quiet").stdout == ""


def test_all_problems_of_a_config_are_told(shimctl: Shimctl, place: Path, busybox: Path) -> None:
    spec = runc_default("true")
    spec["process"]["cwd"] = "relative"
    spec["linux"]["namespaces"].append({"type": "nonsense"})
    done = shimctl("run", "--bundle", str(make_bundle(place / "bad", spec, busybox)), code=125)
    assert "/process/cwd" in done.stderr
    assert "/linux/namespaces/5/type" in done.stderr
