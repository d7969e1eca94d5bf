"""pause, resume and update, seen in the cgroup."""

from __future__ import annotations

import json

import pytest

from tests.container.boxes import Box
from tests.support import wait
from tests.support.requires import requires


def read(box: Box, file: str) -> str:
    return (box.cgroup(file.split(".")[0]) / file).read_text().strip()


def test_a_paused_container_can_be_resumed(box: Box) -> None:
    box.start()
    box.runtime("pause", box.id)
    assert box.status() == "paused"
    assert "container not running" in box.runtime.fails("pause", box.id)
    box.runtime("resume", box.id)
    assert box.status() == "running"
    assert "container not paused" in box.runtime.fails("resume", box.id)


def test_a_created_container_can_be_paused(box: Box) -> None:
    box.create()
    box.runtime("pause", box.id)
    assert box.status() == "paused"
    box.runtime("resume", box.id)
    assert box.status() == "created"
    box.runtime("start", box.id)
    assert box.status() == "running"


@pytest.mark.parametrize("verb", ["pause", "resume", "update", "ps", "events", "checkpoint"])
def test_an_unknown_container_is_refused(box: Box, verb: str) -> None:
    assert "container does not exist" in box.runtime.fails(verb, box.id)


def test_a_dead_container_has_nothing_to_pause_or_update(box: Box) -> None:
    box.create()
    pid = box.state()["pid"]
    box.runtime("kill", box.id, "KILL")
    wait.process_gone(pid)
    assert "container not running" in box.runtime.fails("pause", box.id)
    assert "container not paused" in box.runtime.fails("resume", box.id)
    assert "container not running" in box.runtime.fails("update", "--pids-limit", "5", box.id)


@requires("cgroup-mode:hybrid", "cgroup:memory", "cgroup:pids")
def test_update_by_options_before_and_after_the_id(box: Box) -> None:
    box.start()
    box.runtime("update", box.id, "--memory", "64m", "--memory-reservation=0.5m", "--pids-limit", "7")
    assert read(box, "memory.limit_in_bytes") == str(64 << 20)
    assert read(box, "memory.soft_limit_in_bytes") == str(1 << 19)
    assert read(box, "pids.max") == "7"
    box.runtime("update", "-memory", "-1", "--pids-limit", "-1", box.id)
    assert int(read(box, "memory.limit_in_bytes")) > 1 << 60
    assert read(box, "pids.max") == "max"


@requires("cgroup-mode:hybrid", "cgroup:cpu")
def test_update_keeps_what_is_not_named(box: Box) -> None:
    box.spec["linux"]["resources"]["cpu"] = {"shares": 100, "quota": 500000, "period": 1000000}
    box.start()
    box.runtime("update", "--cpu-period", "900000", box.id)
    assert read(box, "cpu.cfs_quota_us") == "500000"
    box.runtime("update", "--cpu-quota", "600000", box.id)
    assert (read(box, "cpu.cfs_period_us"), read(box, "cpu.shares")) == ("900000", "100")
    box.runtime("update", "--cpu-share", "200", box.id)
    box.runtime("update", "--cpu-quota", "-1", box.id)
    assert (read(box, "cpu.cfs_quota_us"), read(box, "cpu.shares")) == ("-1", "200")


@requires("cgroup-mode:hybrid", "cgroup:memory", "cgroup:pids")
def test_update_from_a_file_ignores_other_options(box: Box) -> None:
    box.start()
    document = json.dumps({"memory": {"limit": 40 << 20}, "pids": {"limit": 20}}).encode()
    box.runtime("update", "--resources=-", "--pids-limit", "5", box.id, stdin=document)
    assert (read(box, "memory.limit_in_bytes"), read(box, "pids.max")) == (str(40 << 20), "20")
    file = box.bundle / "resources.json"
    file.write_text('{"pids": {"limit": 30}}')
    box.runtime("update", "-r", str(file), box.id)
    assert (read(box, "memory.limit_in_bytes"), read(box, "pids.max")) == (str(40 << 20), "30")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--memory", "5x"), "invalid value for memory: invalid s"),  # size, or suffix
        (("--memory-swap", "m"), "invalid value for memory-swap"),
        (("--cpu-quota", "much"), "invalid value for cpu-quota"),
        (("--cpu-period", "1.5"), "invalid value for cpu-period"),
        (("--resources", "/nonexistent"), "open /nonexistent"),
        (("--l3-cache-schema", "L3:0=f"), "l3 cache schema is not enabled"),
        (("--mem-bw-schema", "MB:0=20"), "memory bandwidth schema is not enabled"),
    ],
)
def test_update_says_which_value_is_wrong(box: Box, options: tuple[str, str], text: str) -> None:
    box.create()
    assert text in box.runtime.fails("update", *options, box.id)


def test_update_warns_of_kernel_memory(box: Box) -> None:
    box.start()
    answer = box.runtime.run("update", "--kernel-memory", "16m", box.id)
    assert answer.code == 0
    assert "Kernel memory settings are ignored" in answer.errors


@pytest.mark.parametrize("stage", ["created", "stopped"])
def test_only_a_running_container_can_be_checkpointed(box: Box, stage: str) -> None:
    box.create()
    if stage == "stopped":
        pid = box.state()["pid"]
        box.runtime("kill", box.id, "KILL")
        wait.process_gone(pid)
    assert f"Container cannot be checkpointed in {stage} state" in box.runtime.fails("checkpoint", box.id)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--parent-path", "/absolute"), "--parent-path must be relative"),
        (("--parent-path", "../missing"), "invalid --parent-path"),
        (("--page-server", "nowhere"), "Use --page-server ADDRESS:PORT to specify page server"),
        (("--page-server", "localhost:port"), "Invalid port number"),
        (("--empty-ns", "pid"), 'namespace "pid" is not supported'),
    ],
)
def test_checkpoint_says_which_option_is_wrong(box: Box, options: tuple[str, str], text: str) -> None:
    box.start()
    images = box.bundle / "images"
    assert text in box.runtime.fails("checkpoint", "--image-path", str(images), *options, box.id).replace('\\"', '"')
    assert box.status() == "running"
