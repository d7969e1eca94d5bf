"""create, start, state, kill, delete: which verb may follow which, and what each leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.container.boxes import IS_OURS, OURS_ONLY, Box, Runtime
from tests.support import wait


def dead(box: Box) -> None:
    """A container whose program has been killed."""
    pid = box.state()["pid"]
    box.runtime("kill", box.id, "KILL")
    wait.process_gone(pid)


def test_a_life(box: Box) -> None:
    box.create()
    assert box.status() == "created"
    box.runtime("start", box.id)
    assert box.status() == "running"
    dead(box)
    assert box.status() == "stopped"
    box.runtime("delete", box.id)
    assert "container does not exist" in box.runtime.fails("state", box.id)
    assert os.listdir(box.runtime.root) == []


def test_the_state_is_the_document_of_the_specification(box: Box) -> None:
    box.spec["annotations"] = {"org.example.b": "2", "org.example.a": "ä"}
    before = datetime.now(UTC)
    box.create()
    text = box.runtime("state", box.id)
    state = json.loads(text)
    assert list(state) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"]
    assert text == json.dumps(state, indent=2, ensure_ascii=False)
    assert (state["id"], state["status"], state["owner"]) == (box.id, "created", "")
    assert state["bundle"] == str(box.bundle)
    assert state["rootfs"] == str(box.bundle / "rootfs")
    assert state["annotations"] == {"org.example.a": "ä", "org.example.b": "2"}
    assert Path(f"/proc/{state['pid']}").exists()
    created = datetime.fromisoformat(state["created"][:26].rstrip("Z") + "+00:00")
    assert before <= created <= datetime.now(UTC)


def test_a_dead_container_has_no_pid(box: Box) -> None:
    box.start()
    dead(box)
    state = box.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert "annotations" not in state


def test_an_id_is_taken_once(box: Box) -> None:
    box.create()
    pid = box.state()["pid"]
    answer = box.runtime.run("create", "--bundle", str(box.bundle), box.id)
    assert answer.code == 1
    assert "container with given ID already exists" in answer.errors
    assert box.state()["pid"] == pid


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\nb", "x" * 1100])
def test_ids_are_plain_names(box: Box, name: str) -> None:
    box.write()
    errors = box.runtime.fails("create", "--bundle", str(box.bundle), name)
    wanted = ("container id cannot be empty", "invalid ID format") if not name else ("invalid", "too long", "File name")
    assert any(words in errors for words in wanted)
    assert os.listdir(box.runtime.root) == []


def test_ids_have_a_few_special_characters(box: Box) -> None:
    box.id += "_x+Y.-"
    box.create()
    assert box.status() == "created"


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete", "pause", "resume"])
def test_no_such_container(runtime: Runtime, verb: str) -> None:
    assert "container does not exist" in runtime.fails(verb, "nosuch")


def test_start_only_once(box: Box) -> None:
    box.start()
    assert "cannot start an already running container" in box.runtime.fails("start", box.id)
    dead(box)
    assert "cannot start a container that has stopped" in box.runtime.fails("start", box.id)


@OURS_ONLY  # the other may wait for ever in runc 1.1
def test_of_two_starts_one_wins(box: Box) -> None:
    box.create()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(box.runtime.run("start", box.id).code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0, 1, 1]
    assert box.status() == "running"


@pytest.mark.parametrize("name", ["USR1", "usr1", "SIGUSR1", "sigusr1", "10"])
def test_signals_by_name_and_number(box: Box, name: str) -> None:
    read_end, write_end = os.pipe()
    box.shell("trap 'echo got it; exit' USR1; echo ready; while :; do sleep 0.1; done")
    box.write()
    command = [*box.runtime.command, "run", "-d", "--bundle", str(box.bundle), box.id]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, check=True, timeout=60)
    os.close(write_end)
    wait.read_until(read_end, b"ready\n")
    box.runtime("kill", box.id, name)
    assert wait.read_to_end(read_end) == b"got it\n"
    os.close(read_end)


def test_the_usual_signal_is_term(box: Box) -> None:
    box.shell("trap 'exit 3' TERM; while :; do sleep 0.1; done")
    box.start()
    pidfd = os.pidfd_open(box.state()["pid"])
    # Until the trap is set the first process of a pid namespace ignores the signal.
    while not wait.is_readable(pidfd):
        box.runtime.run("kill", box.id)
    os.close(pidfd)


def test_unknown_signals(box: Box) -> None:
    box.create()
    assert "unknown signal" in box.runtime.fails("kill", box.id, "NOSUCH")
    assert "unknown signal" in box.runtime.fails("kill", box.id, "1x")
    box.runtime.fails("kill", box.id, "1000")
    box.runtime.fails("kill", box.id, "9" * 5000)
    assert box.status() == "created"


def test_a_created_container_can_be_killed(box: Box) -> None:
    box.create()
    dead(box)
    assert box.status() == "stopped"
    box.runtime("delete", box.id)


def test_no_signal_for_a_dead_container(box: Box) -> None:
    box.start()
    dead(box)
    errors = box.runtime.fails("kill", box.id, "TERM")
    assert "container not running" in errors or "process already finished" in errors
    box.runtime("kill", "--all", box.id, "KILL")


def test_a_running_container_is_deleted_only_by_force(box: Box) -> None:
    box.start()
    pid = box.state()["pid"]
    assert f"cannot delete container {box.id} that is not stopped: running" in box.runtime.fails("delete", box.id)
    box.runtime("delete", "--force", box.id)
    wait.process_gone(pid)


def test_a_created_container_is_deleted_without_force(box: Box) -> None:
    box.create()
    pid = box.state()["pid"]
    box.runtime("delete", box.id)
    wait.process_gone(pid)
    assert not box.cgroup("pids").exists()


def test_a_paused_container_is_deleted_only_by_force(box: Box) -> None:
    box.start()
    box.runtime("pause", box.id)
    assert "that is not stopped: paused" in box.runtime.fails("delete", box.id)
    box.runtime("delete", "-f", box.id)


def test_force_finds_nothing_wrong_with_a_container_that_is_gone(runtime: Runtime) -> None:
    runtime("delete", "--force", "nosuch")
    runtime.fails("delete", "nosuch")


def test_what_a_killed_creator_left_is_deleted_by_force(runtime: Runtime) -> None:
    (runtime.root / "stray").mkdir()
    runtime("delete", "--force", "stray")
    assert os.listdir(runtime.root) == []


def test_processes_beside_init_end_with_it_in_the_pid_namespace_of_the_host(box: Box) -> None:
    box.spec["linux"]["namespaces"] = [entry for entry in box.spec["linux"]["namespaces"] if entry["type"] != "pid"]
    box.shell("sleep 1000 & sleep 1001 & wait")
    box.start()
    pids: list[int] = []
    while len(pids) < 3:
        pids = json.loads(box.runtime("ps", "--format", "json", box.id))
    box.runtime("kill", "--all", box.id, "KILL")
    for pid in pids:
        wait.process_gone(pid)
    box.runtime("delete", box.id)


def test_the_state_directory_is_closed_to_others(box: Box) -> None:
    box.create()
    folder = box.runtime.root / box.id
    assert folder.stat().st_mode & 0o777 == 0o711
    assert (folder / "state.json").stat().st_mode & 0o777 == 0o600


@OURS_ONLY
def test_a_creator_that_is_terminated_leaves_nothing(box: Box) -> None:
    """In the middle of a hook."""
    marker = box.bundle / "began"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {marker}; sleep 1000"]}
    box.spec["hooks"] = {"createRuntime": [hook]}
    box.write()
    with subprocess.Popen(
        [*box.runtime.command, "create", "--bundle", str(box.bundle), box.id], stdin=subprocess.DEVNULL
    ) as creator:
        while not marker.exists():
            assert creator.poll() is None
        creator.send_signal(signal.SIGTERM)
        assert creator.wait(20) == 128 + signal.SIGTERM
    assert os.listdir(box.runtime.root) == []
    assert not box.cgroup("pids").exists()


@OURS_ONLY  # of runc init lives on
def test_what_a_creator_that_was_killed_has_made_is_deleted_by_force(box: Box) -> None:
    marker = box.bundle / "began"
    hook = {
        "path": "/bin/sh",
        "args": ["sh", "-c", f"echo $$ >{marker}.new; mv {marker}.new {marker}; exec sleep 1000"],
    }
    box.spec["hooks"] = {"createRuntime": [hook]}
    box.write()
    with subprocess.Popen(
        [*box.runtime.command, "create", "--bundle", str(box.bundle), box.id], stdin=subprocess.DEVNULL
    ) as creator:
        while not marker.exists():
            assert creator.poll() is None
        creator.kill()
    os.kill(int(marker.read_text()), signal.SIGKILL)
    assert "container does not exist" in box.runtime.fails("state", box.id)
    assert box.cgroup("pids").exists()
    box.runtime("delete", "--force", box.id)
    assert os.listdir(box.runtime.root) == []
    assert not box.cgroup("pids").exists()


def test_failures_to_create_leave_nothing(box: Box) -> None:
    box.spec["process"]["args"] = ["/nosuch"]
    box.write()
    errors = box.runtime.fails("create", "--bundle", str(box.bundle), box.id)
    assert "stat /nosuch: no such file or directory" in errors
    box.spec["process"]["args"] = ["nosuch"]
    box.write()
    errors = box.runtime.fails("create", "--bundle", str(box.bundle), box.id)
    assert 'exec: \\"nosuch\\": executable file not found in $PATH' in errors
    box.spec["process"]["args"] = ["/etc/passwd"]
    box.write()
    assert "permission denied" in box.runtime.fails("create", "--bundle", str(box.bundle), box.id)
    assert os.listdir(box.runtime.root) == []
    assert not box.cgroup("pids").exists()


def test_a_bundle_without_a_configuration(runtime: Runtime, place: Path) -> None:
    errors = runtime.fails("create", "--bundle", str(place), "x")
    assert "config.json" in errors
    assert os.listdir(runtime.root) == []


def test_the_bundle_is_the_current_directory(box: Box) -> None:
    box.write()
    box.runtime("create", box.id, cwd=box.bundle)
    assert box.state()["bundle"] == str(box.bundle)


def test_a_relative_bundle(box: Box) -> None:
    box.write()
    box.runtime("create", "-b", box.bundle.name, box.id, cwd=box.bundle.parent)
    assert box.state()["bundle"] == str(box.bundle)
    assert IS_OURS or box.status() == "created"
