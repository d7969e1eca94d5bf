"""Limits of cgroup v2 through the command line in $RUNTIME: what is asked of run, update and pause is in the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import Box, Runtime, runtime
from tests.support.requires import requires

__all__ = ["runtime"]

pytestmark = [pytest.mark.lab, requires("cgroup-mode:v2")]

MEBIBYTE = 1 << 20


@pytest.fixture
def box(runtime: Runtime, busybox: Path, new_id: Callable[[], str]) -> Box:
    return Box(runtime, new_id(), busybox.parent)


def files(box: Box, *names: str) -> list[str]:
    return [(box.cgroup("") / name).read_text().strip() for name in names]


def limit(box: Box, **resources: Any) -> None:
    box.spec["linux"]["resources"] |= resources


def test_update_by_options(box: Box) -> None:
    limit(box, memory={"limit": 32 * MEBIBYTE}, cpu={"shares": 1024})
    box.start()
    box.runtime("update", "--memory", "64m", "--memory-reservation", "1m", "--memory-swap", "96m", box.id)
    memory = ("memory.max", "memory.low", "memory.swap.max")
    assert files(box, *memory) == [str(64 * MEBIBYTE), str(MEBIBYTE), str(32 * MEBIBYTE)]
    box.runtime("update", "--memory", "80m", box.id)  # of what was said of swap the sum is kept
    assert files(box, *memory) == [str(80 * MEBIBYTE), str(MEBIBYTE), str(16 * MEBIBYTE)]
    box.runtime("update", "--memory", "-1", box.id)
    assert files(box, *memory) == ["max", str(MEBIBYTE), "max"]
    box.runtime("update", "--pids-limit", "7", "--cpu-period", "20000", box.id)
    assert files(box, "pids.max", "cpu.max") == ["7", "max 20000"]
    box.runtime("update", "--cpu-quota", "5000", box.id)
    box.runtime("update", "--cpu-share", "512", box.id)
    assert files(box, "pids.max", "cpu.max", "cpu.weight") == ["7", "5000 20000", "59"]


def test_update_from_a_file(box: Box) -> None:
    box.start()
    document = {
        "memory": {"limit": 40 * MEBIBYTE},
        "pids": {"limit": 20},
        "unified": {"memory.high": str(20 * MEBIBYTE), "pids.max": "30", "cpu.max": "7000 10000"},
    }
    box.runtime("update", "--resources", "-", box.id, stdin=json.dumps(document).encode())
    expected = [str(40 * MEBIBYTE), str(20 * MEBIBYTE), "30", "7000 10000"]
    assert files(box, "memory.max", "memory.high", "pids.max", "cpu.max") == expected


def test_a_failed_update_names_the_file(box: Box) -> None:
    box.start()
    throttle = {"blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 10}]}}
    said = box.runtime.fails("update", "-r", "-", box.id, stdin=json.dumps(throttle).encode())
    assert "io.max: no such device" in said


def test_pause_freezes_and_resume_thaws(box: Box) -> None:
    box.start()
    box.runtime("pause", box.id)
    assert files(box, "cgroup.freeze") == ["1"]
    assert "frozen 1" in files(box, "cgroup.events")[0]
    assert "cannot exec in a paused container" in box.runtime.fails("exec", box.id, "true", code=255)
    box.runtime("resume", box.id)
    assert files(box, "cgroup.freeze") == ["0"]
    box.runtime("exec", box.id, "true")


def test_stats(box: Box) -> None:
    limit(box, memory={"limit": 64 * MEBIBYTE, "swap": 96 * MEBIBYTE}, pids={"limit": 10})
    box.start()
    data = json.loads(box.runtime("events", "--stats", box.id))["data"]
    assert data["pids"] == {"current": 1, "limit": 10}
    assert data["memory"]["usage"]["limit"] == 64 * MEBIBYTE
    assert data["memory"]["swap"]["limit"] == 96 * MEBIBYTE  # of both, as on v1
    assert data["memory"]["raw"]["anon"] > 0
    assert data["cpu"]["usage"]["total"] > 0


def test_delete_removes_what_the_container_made(box: Box) -> None:
    box.start()
    folder = box.cgroup("")
    (folder / "a" / "b").mkdir(parents=True)
    box.runtime("delete", "--force", box.id)
    assert not folder.exists()
