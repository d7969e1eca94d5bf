"""Exec over the task API: stored, started, ended; and the order of events when the container ends first."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from shimd.api.containerd import runc_options_pb2
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support.fifo import Fifos


@pytest.fixture
def running(box: MakeBox) -> Box:
    b = box("sleep", "1000")
    b.make()
    b.start()
    return b


def test_exec_is_only_stored_until_started(running: Box) -> None:
    running.exec("e1", "/bin/sh", "-c", "exit 6")
    state = running.state("e1")
    assert (running.status("e1"), state.exec_id, state.pid) == ("CREATED", "e1", 0)
    pid = running.start("e1")
    assert running.wait("e1") == 6
    deleted = running.delete("e1")
    assert (deleted.pid, deleted.exit_status) == (pid, 6)
    with refused("NOT_FOUND", "process does not exist e1"):
        running.state("e1")
    assert running.status() == "RUNNING"


def test_events_of_an_exec(running: Box) -> None:
    running.exec("e1", "true")
    pid = running.start("e1")
    running.wait("e1")
    running.delete("e1")
    events = running.events()[2:]
    assert [topic for topic, _ in events] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert [(m.container_id, m.exec_id) for _, m in events[:2]] == [(running.id, "e1")] * 2
    assert (events[2][1].id, events[2][1].pid) == ("e1", pid)


def test_exits_of_execs_precede_that_of_the_container(running: Box) -> None:
    for number in range(4):
        running.exec(f"e{number}", "sleep", "1000")
        running.start(f"e{number}")
    running.kill()
    assert running.wait() == 137
    exits = [message.id for topic, message in running.events() if topic == "/tasks/exit"]
    assert sorted(exits[:4]) == ["e0", "e1", "e2", "e3"]
    assert exits[4:] == [running.id]
    assert {running.wait(f"e{number}") for number in range(4)} == {137}
    running.delete()


def test_duplicate_exec_id_is_refused(running: Box) -> None:
    running.exec("e1", "true")
    with refused("ALREADY_EXISTS", "e1"):
        running.exec("e1", "true")
    running.start("e1")
    running.wait("e1")
    running.delete("e1")
    running.exec("e1", "true")


def test_missing_program_leaves_the_container_running(running: Box) -> None:
    running.exec("e1", "/no/such/program")
    waiting = running.waiting("e1")
    with refused("UNKNOWN", "/no/such/program"):
        running.start("e1")
    assert waiting.result().exit_status == 255
    assert running.status("e1") == "STOPPED"
    assert running.status() == "RUNNING"
    running.delete("e1")


def test_second_start_of_an_exec_is_refused(running: Box) -> None:
    running.exec("e1", "sleep", "1000")
    running.start("e1")
    with refused("FAILED_PRECONDITION"):
        running.start("e1")


def test_delete_of_a_running_exec_is_refused(running: Box) -> None:
    running.exec("e1", "sleep", "1000")
    running.start("e1")
    with refused("FAILED_PRECONDITION", "running"):
        running.delete("e1")


def test_delete_of_an_exec_that_was_never_started(running: Box) -> None:
    running.exec("e1", "true")
    running.delete("e1")
    with refused("NOT_FOUND"):
        running.start("e1")


def test_kill_of_an_exec(running: Box) -> None:
    running.exec("e1", "sleep", "1000")
    with refused("FAILED_PRECONDITION", "process not created"):
        running.kill(signal.SIGTERM, "e1")
    running.start("e1")
    running.kill(signal.SIGTERM, "e1")
    assert running.wait("e1") == 128 + signal.SIGTERM
    with refused("NOT_FOUND", "process already finished"):
        running.kill(signal.SIGTERM, "e1")


def test_exec_in_a_stopped_container_is_refused(running: Box) -> None:
    running.exec("early", "true")
    running.kill()
    running.wait()
    with refused("FAILED_PRECONDITION", "stopped"):
        running.exec("late", "true")
    with refused("FAILED_PRECONDITION", f"container {running.id} init process is not running"):
        running.start("early")
    running.delete()


def test_exec_in_a_paused_container_is_refused(running: Box) -> None:
    running.exec("early", "true")
    running.pause()
    with refused("FAILED_PRECONDITION", "paused"):
        running.exec("late", "true")
    with refused("FAILED_PRECONDITION", "paused"):
        running.start("early")
    running.resume()
    running.start("early")
    assert running.wait("early") == 0


def test_exec_in_a_created_container(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.exec("e1", *shell("exit 2"))
    b.start("e1")
    assert b.wait("e1") == 2
    b.start()


def test_malformed_process_is_refused(running: Box) -> None:
    with refused("INVALID_ARGUMENT", "/args"):
        running.exec("e1", process={"args": "no list"})
    with refused("NOT_FOUND"):
        running.state("e1")


@pytest.mark.parametrize("exec_id", ["", "..", "a/b", "-x", "x" * 77, "é"])
def test_malformed_exec_id_is_refused(running: Box, exec_id: str) -> None:
    with refused("INVALID_ARGUMENT", "exec id"):
        running.exec(exec_id, "true")


def test_pids_name_the_execs(running: Box) -> None:
    running.exec("e1", "sleep", "1000")
    exec_pid = running.start("e1")
    details = {p.pid: p.info for p in running.pids()}
    assert details.keys() == {running.state().pid, exec_pid}
    assert not details[running.state().pid].value
    assert details[exec_pid].type_url == "containerd.runc.v1.ProcessDetails"
    assert runc_options_pb2.ProcessDetails.FromString(details[exec_pid].value).exec_id == "e1"


def test_output_and_environment_of_an_exec(running: Box, place: Path) -> None:
    process = {"env": ["PATH=/bin", "WHO=me"], "cwd": "/tmp", "user": {"uid": 1000, "gid": 1000}}
    with Fifos(place / "fifos") as fifos:
        running.exec(
            "e1",
            *shell("echo $WHO; pwd; id -u; echo bad >&2"),
            process=process,
            stdout=fifos.stdout,
            stderr=fifos.stderr,
        )
        running.start("e1")
        assert running.wait("e1") == 0
        running.delete("e1")
        assert fifos.read_stdout() == b"me\n/tmp\n1000\n"
        assert fifos.read_stderr() == b"bad\n"
