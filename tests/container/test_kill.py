"""Signals, and what they mean to a container without a pid namespace of its own."""

from __future__ import annotations

import os
import signal

import pytest

from tests.container.boxes import NEWER, Box
from tests.support import wait


def start_in_the_hosts_pid_namespace(box: Box) -> list[int]:
    """Init and two more; their pids, init first."""
    namespaces = box.spec["linux"]["namespaces"]
    box.spec["linux"]["namespaces"] = [entry for entry in namespaces if entry["type"] != "pid"]
    box.spec["process"]["args"] = ["sh", "-c", "sleep 1000 & sleep 1001 & echo > /fifo; wait"]
    os.mkfifo(box.bundle / "rootfs/fifo")
    box.start()
    (box.bundle / "rootfs/fifo").read_bytes()
    return [int(pid) for pid in box.runtime("ps", "-f", "json", box.id).strip("[]\n").split(",")]


@NEWER  # runc 1.1 needs --all for that
def test_sigkill_is_for_all_in_the_hosts_pid_namespace(box: Box) -> None:
    pids = start_in_the_hosts_pid_namespace(box)
    assert len(pids) == 3
    box.runtime("kill", box.id, "KILL")
    for pid in pids:
        wait.process_gone(pid)
    assert box.status() == "stopped"


@NEWER  # runc 1.1 needs --all for that
def test_sigkill_is_for_those_who_outlived_init(box: Box) -> None:
    pids = start_in_the_hosts_pid_namespace(box)
    os.kill(box.state()["pid"], signal.SIGKILL)
    wait.process_gone(pids[0])
    assert "container not running" in box.runtime.fails("kill", box.id, "TERM")
    box.runtime("kill", box.id, "KILL")
    for pid in pids:
        wait.process_gone(pid)


@pytest.mark.parametrize("name", ["TERM", "SIGINT", "hup"])
def test_a_container_that_was_not_started_can_be_told_to_end(box: Box, name: str) -> None:
    """Its first process, too, which the kernel keeps signals without a handler from."""
    box.create()
    pid = box.state()["pid"]
    box.runtime("kill", box.id, name)
    wait.process_gone(pid)
    assert box.status() == "stopped"
