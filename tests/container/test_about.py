"""Verbs that tell about containers: state, list, ps, events; and those about the program: spec, features."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.container.boxes import NEWER, OURS_ONLY, Box, Runtime
from tests.support import wait
from tests.support.requires import requires


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_list_of_nothing_is_a_header_null_and_no_ids(runtime: Runtime) -> None:
    assert runtime("list") == "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    assert runtime("list", "--format", "json") == "null\n"
    assert runtime("list", "--quiet") == ""


def test_list_has_a_row_for_each_container(box: Box) -> None:
    box.create()
    header, row = rows(box.runtime("list"))
    assert header == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    state = box.state()
    assert row == [box.id, str(state["pid"]), "created", str(box.bundle), state["created"], "root"]


def test_columns_of_list_are_three_spaces_apart(box: Box) -> None:
    box.create()
    header, row = box.runtime("list").splitlines()
    assert row.index("created") == header.index("STATUS")
    assert row.startswith(f"{box.id:<{max(12, len(box.id) + 3)}}{box.state()['pid']}")


def test_list_as_json_is_the_state_with_its_owner(box: Box) -> None:
    box.spec["annotations"] = {"com.example.key": "a, b"}
    box.create()
    output = box.runtime("list", "-f", "json")
    assert output.count("\n") == 1
    (document,) = json.loads(output)
    assert document == {**box.state(), "owner": "root"}
    assert document["annotations"] == {"com.example.key": "a, b"}


def test_list_quietly_has_only_ids(box: Box) -> None:
    box.create()
    assert box.runtime("list", "-q") == f"{box.id}\n"


def test_list_names_what_it_cannot_load_and_goes_on(box: Box) -> None:
    box.create()
    (box.runtime.root / "stray").mkdir()
    answer = box.runtime.run("list", "-q")
    assert (answer.code, answer.output) == (0, f"{box.id}\n")
    assert "stray" in answer.errors
    (box.runtime.root / "stray").rmdir()


@NEWER  # runc 1.1 finds nothing wrong with it
def test_list_of_a_root_that_is_not_there_fails(runtime: Runtime) -> None:
    command = [runtime.command[0], "--root", str(runtime.root / "none")]
    answer = runtime.run("list", command=command)
    assert answer.code == 1
    assert "none" in answer.errors


def test_list_knows_two_formats(runtime: Runtime) -> None:
    assert "invalid format option" in runtime.fails("list", "--format", "yaml")


def test_ps_as_json_is_the_pids(box: Box) -> None:
    box.spec["process"]["args"] = ["sh", "-c", "sleep 1000 & wait"]
    box.create()
    assert box.runtime("ps", "--format=json", box.id) == f"[{box.state()['pid']}]\n"


def test_ps_of_a_dead_container_is_null(box: Box) -> None:
    box.create()
    pid = box.state()["pid"]
    box.runtime("kill", box.id, "KILL")
    wait.process_gone(pid)
    assert box.runtime("ps", "-f", "json", box.id) == "null\n"


@requires("runs:ps -ef")
def test_ps_shows_the_rows_of_the_hosts_ps(box: Box) -> None:
    box.start()
    pid = str(box.state()["pid"])
    header, row = rows(box.runtime("ps", box.id))
    assert header[:2] == ["UID", "PID"]
    assert row[1] == pid
    header, row = rows(box.runtime("ps", box.id, "-e", "-o", "pid,comm"))
    assert (header[0], row[0]) == ("PID", pid)


@requires("runs:ps -ef")
def test_ps_needs_a_column_of_pids(box: Box) -> None:
    box.create()
    assert "couldn't find PID field in ps output" in box.runtime.fails("ps", box.id, "-e", "-o", "comm")
    assert "exit status 1" in box.runtime.fails("ps", box.id, "--no-such-option")


@requires("cgroup:pids")
def test_events_tells_the_figures_once(box: Box) -> None:
    box.spec["linux"]["resources"]["pids"] = {"limit": 123}
    box.start()
    output = box.runtime("events", "--stats", box.id)
    assert output.count("\n") == 1
    event = json.loads(output)
    assert (event["type"], event["id"]) == ("stats", box.id)
    data = event["data"]
    assert data["pids"]["limit"] == 123
    assert data["pids"]["current"] >= 1  # runc has threads there, up to the moment of the execve
    assert data["memory"]["usage"]["limit"] > 0
    assert {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"} <= data.keys()


def test_events_tells_figures_again_and_again(box: Box) -> None:
    box.start()
    command = [*box.runtime.command, "events", "--interval", "50ms", box.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        kinds = [json.loads(running.stdout.readline())["type"] for _ in range(3)]
        box.runtime("delete", "--force", box.id)
        running.stdout.read()
    assert kinds == ["stats"] * 3
    assert running.returncode == 0


@requires("cgroup:memory")
def test_events_tells_of_an_oom_kill(box: Box) -> None:
    box.spec["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    box.spec["process"]["args"] = ["sh", "-c", "read go < /fifo; head -c 60000000 /dev/zero | tail -c 60000000"]
    os.mkfifo(box.bundle / "rootfs/fifo")
    box.start()
    command = [*box.runtime.command, "events", "--interval", "100ms", box.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["type"] == "stats"  # so it watches
        (box.bundle / "rootfs/fifo").write_bytes(b"\n")
        found: dict[str, str] = {}
        while found.get("type") != "oom":
            found = json.loads(running.stdout.readline())
        box.runtime("delete", "--force", box.id)
        running.stdout.read()
    assert found == {"type": "oom", "id": box.id}


def test_events_needs_a_container_that_is_not_stopped(box: Box) -> None:
    box.create()
    pid = box.state()["pid"]
    box.runtime("kill", box.id, "9")
    wait.process_gone(pid)
    assert f"container with id {box.id} is not running" in box.runtime.fails("events", "--stats", box.id)


@pytest.mark.parametrize("interval", ["0", "0s", "-1s"])
def test_events_needs_an_interval(box: Box, interval: str) -> None:
    box.create()
    assert "duration interval must be greater than 0" in box.runtime.fails("events", f"--interval={interval}", box.id)


def test_spec_writes_a_config_once(runtime: Runtime, place: Path) -> None:
    bundle = place / "bundle"
    bundle.mkdir()
    assert runtime("spec", "--bundle", str(bundle)) == ""
    text = (bundle / "config.json").read_text()
    document = json.loads(text)
    assert text.startswith('{\n\t"ociVersion": ')
    assert document["process"]["args"] == ["sh"]
    assert "File config.json exists. Remove it first" in runtime.fails("spec", "-b", str(bundle))
    assert (bundle / "config.json").read_text() == text


def test_spec_for_an_ordinary_user(runtime: Runtime, place: Path) -> None:
    runtime("spec", "--rootless", cwd=place)
    linux = json.loads((place / "config.json").read_text())["linux"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    kinds = {namespace["type"] for namespace in linux["namespaces"]}
    assert "user" in kinds
    assert "network" not in kinds
    assert "resources" not in linux


def test_features_is_a_document(runtime: Runtime) -> None:
    output = runtime("features")
    document = json.loads(output)
    assert output.startswith('{\n    "ociVersionMin": "1.0.0",\n')
    assert {"prestart", "poststop"} <= set(document["hooks"])
    assert "rbind" in document["mountOptions"]
    assert document["linux"]["cgroup"]["v1"] is True


@OURS_ONLY
def test_plan_prints_the_steps_and_does_nothing(box: Box) -> None:
    box.write()
    lines = box.runtime("plan", "--bundle", str(box.bundle), box.id).splitlines()
    assert lines[0].startswith("  1  ")
    assert lines[-1].endswith("execute the program")
    assert os.listdir(box.runtime.root) == []
    document = json.loads(box.runtime("plan", "-b", str(box.bundle), "--format", "json"))
    assert len(document["steps"]) + len(document["stage"]) == len(lines)


@OURS_ONLY
def test_plan_refuses_what_create_would_refuse(box: Box) -> None:
    box.spec["mounts"].append(
        {"destination": "/x", "type": "none", "source": "x", "options": ["bind", "bind", "exec=1"]}
    )
    box.write()
    assert "/mounts/7/options/2" in box.runtime.fails("plan", "-b", str(box.bundle))


@OURS_ONLY
def test_doctor_tells_what_is_lacking(runtime: Runtime) -> None:
    answer = runtime.run("doctor", "--format", "json")
    findings = json.loads(answer.output)
    assert answer.code == (0 if all(finding["ok"] for finding in findings) else 1)
    lines = runtime.run("doctor").output.splitlines()
    assert [line for line in lines if not line.startswith("      ")] == [
        f"{'ok  ' if finding['ok'] else 'lack'}  {finding['name']}: {finding['reason']}" for finding in findings
    ]


def test_several_containers_are_listed_in_order(box: Box, new_id: Callable[[], str]) -> None:
    box.create()
    others = [new_id(), new_id()]
    for name in others:
        other = Box(box.runtime, name, box.bundle / name)
        other.spec["root"]["path"] = str(box.bundle / "rootfs")
        other.create()
    assert box.runtime("list", "-q").split() == sorted([box.id, *others])
