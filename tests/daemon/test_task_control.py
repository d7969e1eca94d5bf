"""Kill, Pause, Resume, Pids, Update, Stats and the rest of the task API, and the codes of what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2, runc_options_pb2
from shimd.api.containerd import task_v3_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import wait
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.fifo import Fifos
from tests.support.specs import runc_default


@pytest.fixture
def running(box: MakeBox) -> Box:
    b = box("sleep", "1000")
    b.make()
    b.start()
    return b


def _metrics(b: Box) -> Any:
    packed = b.task.Stats(api.StatsRequest(id=b.id)).stats
    kinds = {
        "io.containerd.cgroups.v1.Metrics": cgroups_v1_pb2.Metrics,
        "io.containerd.cgroups.v2.Metrics": cgroups_v2_pb2.Metrics,
    }
    return kinds[packed.type_url].FromString(packed.value)  # type: ignore[attr-defined]


def _memory(metrics: Any) -> tuple[int, int]:
    """Usage and limit, in the message of either version of cgroups."""
    memory = metrics.memory
    is_v2 = isinstance(metrics, cgroups_v2_pb2.Metrics)
    return (memory.usage, memory.usage_limit) if is_v2 else (memory.usage.usage, memory.usage.limit)


def _update(b: Box, resources: Any) -> None:
    request = api.UpdateTaskRequest(id=b.id)
    request.resources.value = json.dumps(resources).encode()
    b.task.Update(request)


UNKNOWN_ID = {
    "State": api.StateRequest,
    "Start": api.StartRequest,
    "Delete": api.DeleteRequest,
    "Pids": api.PidsRequest,
    "Pause": api.PauseRequest,
    "Resume": api.ResumeRequest,
    "Kill": api.KillRequest,
    "Exec": api.ExecProcessRequest,
    "ResizePty": api.ResizePtyRequest,
    "CloseIO": api.CloseIORequest,
    "Update": api.UpdateTaskRequest,
    "Wait": api.WaitRequest,
    "Stats": api.StatsRequest,
}


@pytest.mark.parametrize("method", UNKNOWN_ID)
def test_unknown_container(client: Client, method: str) -> None:
    with refused("NOT_FOUND", "nobody"):
        getattr(client.task, method)(UNKNOWN_ID[method](id="nobody"))


@pytest.mark.parametrize("method", ["State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait"])
def test_unknown_exec(running: Box, method: str) -> None:
    with refused("NOT_FOUND", "process does not exist nobody"):
        getattr(running.task, method)(UNKNOWN_ID[method](id=running.id, exec_id="nobody"))


@pytest.mark.parametrize("container_id", ["", "..", "a/b", "-x", "x" * 77])
def test_malformed_container_id(client: Client, container_id: str) -> None:
    with refused("INVALID_ARGUMENT", "container id"):
        client.task.Create(api.CreateTaskRequest(id=container_id, bundle="/nowhere"))


@pytest.mark.parametrize("namespace", ["..", "a/b", "x" * 77])
def test_malformed_namespace(daemon: Daemon, namespace: str) -> None:
    with daemon.client(namespace=namespace) as client, refused("INVALID_ARGUMENT", "namespace"):
        client.task.Connect(api.ConnectRequest(id="x"))


def test_checkpoint_is_not_supported(running: Box) -> None:
    with refused("UNIMPLEMENTED"):
        running.task.Checkpoint(api.CheckpointTaskRequest(id=running.id, path="/tmp"))


def test_restore_is_not_supported(box: MakeBox) -> None:
    with refused("UNIMPLEMENTED"):
        box("true").make(checkpoint="/tmp/image")


def test_connect_never_fails(running: Box, daemon: Daemon) -> None:
    answer = running.task.Connect(api.ConnectRequest(id=running.id))
    assert (answer.shim_pid, answer.task_pid) == (daemon.pid, running.state().pid)
    answer = running.task.Connect(api.ConnectRequest(id="nobody"))
    assert (answer.shim_pid, answer.task_pid) == (daemon.pid, 0)


def test_shutdown_leaves_the_daemon_and_its_containers(running: Box) -> None:
    running.task.Shutdown(api.ShutdownRequest(id=running.id))
    running.task.Shutdown(api.ShutdownRequest(id="nobody", now=True))
    assert running.status() == "RUNNING"


def test_shutdown_now_ends_the_container_that_it_names(running: Box, box: MakeBox) -> None:
    other = box("sleep", "1000")
    other.make()
    running.task.Shutdown(api.ShutdownRequest(id=running.id, now=True))
    with refused("NOT_FOUND"):
        running.state()
    assert other.status() == "CREATED"


def test_kill_of_a_stopped_container(running: Box) -> None:
    running.kill()
    running.wait()
    with refused("NOT_FOUND", "process already finished"):
        running.kill()


def test_kill_with_a_number_that_is_no_signal(running: Box) -> None:
    with refused("INVALID_ARGUMENT", "65"):
        running.kill(65)


def test_kill_reaches_a_handler(box: MakeBox, place: Path) -> None:
    b = box(*shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"))
    with Fifos(place / "fifos") as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        fifos.stdout_until(b"ready")
        b.kill(signal.SIGTERM)
        assert b.wait() == 9


def test_kill_all(running: Box) -> None:
    running.exec("e1", "sleep", "1000")
    running.start("e1")
    running.kill(signal.SIGKILL, everyone=True)
    assert (running.wait("e1"), running.wait()) == (137, 137)


def test_shared_pid_namespace_leaves_nothing(box: MakeBox) -> None:
    spec = runc_default(*shell("sleep 1000 & sleep 1000 & exit 3"))
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
    b = box(spec=spec)
    b.make()
    b.start()
    assert b.wait() == 3
    left = [process.pid for process in b.pids()]
    b.delete()
    for pid in left:
        wait.process_gone(pid)


def test_pause_and_resume(running: Box) -> None:
    running.pause()
    assert running.status() == "PAUSED"
    with refused("FAILED_PRECONDITION", "paused"):
        running.pause()
    assert [p.pid for p in running.pids()] == [running.state().pid]
    running.resume()
    assert running.status() == "RUNNING"
    with refused("FAILED_PRECONDITION", "running"):
        running.resume()
    assert running.topics()[2:] == ["/tasks/paused", "/tasks/resumed"]


def test_kill_of_a_paused_container(running: Box) -> None:
    running.pause()
    running.kill()
    assert running.wait() == 137
    assert running.status() == "STOPPED"
    running.delete()


def test_pause_in_other_states_is_refused(box: MakeBox) -> None:
    b = box("true")
    b.make()
    with refused("FAILED_PRECONDITION", "created"):
        b.pause()
    b.start()
    b.wait()
    with refused("FAILED_PRECONDITION", "stopped"):
        b.pause()
    with refused("FAILED_PRECONDITION", "stopped"):
        b.resume()


def test_pids_of_a_stopped_container(running: Box) -> None:
    running.kill()
    running.wait()
    assert running.pids() == []


def test_stats(running: Box) -> None:
    metrics = _metrics(running)
    assert metrics.pids.current == 1
    assert _memory(metrics)[0] > 0


def test_stats_of_a_stopped_container(running: Box) -> None:
    running.kill()
    running.wait()
    with refused("NOT_FOUND"):
        _metrics(running)


def test_update_changes_limits(running: Box) -> None:
    _update(running, {"pids": {"limit": 33}, "memory": {"limit": 64 << 20}})
    metrics = _metrics(running)
    assert metrics.pids.limit == 33
    assert _memory(metrics)[1] == 64 << 20


def test_malformed_update_is_refused(running: Box) -> None:
    with refused("INVALID_ARGUMENT", "/memory/limit"):
        _update(running, {"memory": {"limit": "much"}})


def test_update_of_a_stopped_container_is_refused(running: Box) -> None:
    running.kill()
    running.wait()
    with refused("FAILED_PRECONDITION", "stopped"):
        _update(running, {"pids": {"limit": 33}})


def test_oom_is_told_before_the_exit(box: MakeBox) -> None:
    spec = runc_default(*shell("dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit 1"))
    spec["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    b = box(spec=spec)
    b.make()
    b.start()
    b.wait()
    topics = b.topics()
    assert "/tasks/oom" in topics
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


def test_options_of_create(box: MakeBox) -> None:
    b = box("true")
    request = api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))
    request.options.Pack(runc_options_pb2.Options(no_pivot_root=True, no_new_keyring=True))
    b.task.Create(request)
    b.start()
    assert b.wait() == 0


def test_options_that_must_not_be_ignored_are_refused(box: MakeBox) -> None:
    b = box("true")
    request = api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))
    request.options.Pack(api.StateRequest())
    with refused("INVALID_ARGUMENT", "containerd.task.v3.StateRequest"):
        b.task.Create(request)


def test_resize_without_a_terminal_does_nothing(running: Box) -> None:
    running.task.ResizePty(api.ResizePtyRequest(id=running.id, width=80, height=25))
    with refused("INVALID_ARGUMENT", "70000"):
        running.task.ResizePty(api.ResizePtyRequest(id=running.id, width=70000, height=25))


def test_state_answers_while_another_operation_runs(box: MakeBox) -> None:
    """A poststart hook that waits keeps Start under way."""
    b = box("sleep", "1000")
    fifo = b.bundle / "gate"
    os.mkfifo(fifo)
    config = json.loads((b.bundle / "config.json").read_text())
    config["hooks"] = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", f"read line < {fifo}"]}]}
    (b.bundle / "config.json").write_text(json.dumps(config))
    b.make()
    starting = b.task.Start.future(api.StartRequest(id=b.id))
    writer = os.open(fifo, os.O_WRONLY)  # returns when the hook reads
    assert not starting.done()
    assert b.state().pid > 0
    waiting = b.waiting()
    os.write(writer, b"go\n")
    os.close(writer)
    starting.result()
    b.kill()
    assert waiting.result().exit_status == 137
