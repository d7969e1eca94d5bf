"""The task service over ttrpc: what containers do is tested over gRPC, here is that it is the same service."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2, runc_options_pb2
from shimd.api.containerd import task_v3_pb2 as api
from shimd.api.v1 import runtime_pb2
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import wait
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.fifo import Fifos
from tests.support.specs import runc_default
from tests.support.ttrpc import TtrpcClient


@pytest.fixture
def ttrpc(daemon: Daemon, client: Client) -> Iterator[TtrpcClient]:
    """In the same namespace as ``client``, which lends it what ttrpc has not: streams."""
    with daemon.ttrpc_client(namespace=client.namespace) as connected:
        connected.runtime = client.runtime  # type: ignore[assignment]
        yield connected


@pytest.fixture
def tbox(
    ttrpc: TtrpcClient, bundle: Callable[..., Path], busybox: Path, new_id: Callable[[], str]
) -> Iterator[MakeBox]:
    """As ``box``, over ttrpc."""
    boxes: list[Box] = []

    def make(*args: str, spec: Mapping[str, Any] | None = None) -> Box:
        boxes.append(Box(ttrpc, new_id(), bundle(spec or runc_default(*args), rootfs=busybox)))
        return boxes[-1]

    yield make
    for made in boxes:
        made.remove()


def test_whole_life(tbox: MakeBox) -> None:
    b = tbox(*shell("exit 7"))
    pid = b.make()
    assert (b.state().pid, b.status()) == (pid, "CREATED")
    waiting = b.waiting()
    assert b.start() == pid
    assert waiting.result().exit_status == 7
    assert (b.delete().exit_status, b.topics()) == (
        7,
        ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
    )
    with refused("NOT_FOUND", b.id):
        b.state()


def test_version_2_is_the_same(tbox: MakeBox, ttrpc: TtrpcClient) -> None:
    b = tbox("sleep", "1000")
    b.make()
    answer = ttrpc.task_v2.Connect(api.ConnectRequest(id=b.id))
    assert answer.task_pid == b.state().pid
    ttrpc.task_v2.Delete(api.DeleteRequest(id=b.id))


def test_both_transports_see_the_same_containers(tbox: MakeBox, client: Client) -> None:
    b = tbox("sleep", "1000")
    b.make()
    over_grpc = client.task.Wait.future(api.WaitRequest(id=b.id))
    over_ttrpc = b.waiting()
    b.start()
    client.task.Kill(api.KillRequest(id=b.id, signal=signal.SIGTERM, all=True))
    client.task.Kill(api.KillRequest(id=b.id, signal=signal.SIGKILL))
    assert over_grpc.result().exit_status == over_ttrpc.result().exit_status == 137


def test_namespaces(tbox: MakeBox, daemon: Daemon) -> None:
    b = tbox("true")
    b.make()
    with daemon.ttrpc_client(namespace="elsewhere") as other:
        with refused("NOT_FOUND", "namespace elsewhere"):
            other.task.State(api.StateRequest(id=b.id))


def test_exec_and_its_process_details(tbox: MakeBox) -> None:
    b = tbox("sleep", "1000")
    pid = b.make()
    b.start()
    b.exec("second", "sleep", "1000")
    second = b.start("second")
    found = {info.pid: info.info for info in b.pids()}
    assert set(found) == {pid, second}
    assert not found[pid].type_url
    assert found[second].type_url == "containerd.runc.v1.ProcessDetails"
    assert runc_options_pb2.ProcessDetails.FromString(found[second].value).exec_id == "second"
    b.kill(exec_id="second")
    assert b.wait("second") == 137
    assert b.delete("second").exit_status == 137


def test_stats_are_containerds_metrics(tbox: MakeBox, ttrpc: TtrpcClient, client: Client) -> None:
    b = tbox(*shell("x=$(head -c 8000000 /dev/zero | tr '\\0' x); read y"))
    b.make()
    b.start()
    stats = ttrpc.task.Stats(api.StatsRequest(id=b.id)).stats
    if client.runtime.Version(runtime_pb2.VersionRequest()).cgroup_mode == "v2":
        assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
        assert cgroups_v2_pb2.Metrics.FromString(stats.value).pids.current > 0
    else:
        assert stats.type_url == "io.containerd.cgroups.v1.Metrics"
        metrics = cgroups_v1_pb2.Metrics.FromString(stats.value)
        assert metrics.pids.current > 0
        assert metrics.memory.usage.usage > 0
        assert metrics.cpu.usage.total > 0
    b.kill()
    b.wait()
    with refused("NOT_FOUND"):
        ttrpc.task.Stats(api.StatsRequest(id=b.id))


def test_output_before_delete(tbox: MakeBox, place: Path) -> None:
    b = tbox(*shell("head -c 60000 /dev/zero"))
    with Fifos(place / "stdio") as fifos:
        b.make(stdout=fifos.stdout)
        b.start()
        b.wait()
        b.delete()
        assert len(fifos.read_stdout()) == 60000


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("State", api.StateRequest(id="nobody"), "NOT_FOUND"),
        ("Wait", api.WaitRequest(id="nobody"), "NOT_FOUND"),
        ("Kill", api.KillRequest(id="nobody", signal=9), "NOT_FOUND"),
        ("Delete", api.DeleteRequest(id="nobody"), "NOT_FOUND"),
        ("Pids", api.PidsRequest(id="nobody"), "NOT_FOUND"),
        ("Create", api.CreateTaskRequest(id="../up", bundle="/"), "INVALID_ARGUMENT"),
        ("Create", api.CreateTaskRequest(id="ok", bundle="relative"), "INVALID_ARGUMENT"),
        ("Checkpoint", api.CheckpointTaskRequest(id="nobody"), "UNIMPLEMENTED"),
    ],
)
def test_statuses(ttrpc: TtrpcClient, method: str, request_: Any, code: str) -> None:
    with refused(code):
        getattr(ttrpc.task, method)(request_)


def test_connect_and_shutdown_are_never_refused(ttrpc: TtrpcClient, daemon: Daemon) -> None:
    answer = ttrpc.task.Connect(api.ConnectRequest(id="nobody"))
    assert (answer.shim_pid, answer.task_pid) == (daemon.pid, 0)
    ttrpc.task.Shutdown(api.ShutdownRequest(id="nobody", now=True))


def test_waits_end_with_their_time_and_with_their_connection(tbox: MakeBox, daemon: Daemon, ttrpc: TtrpcClient) -> None:
    b = tbox("sleep", "1000")
    b.make()
    b.start()
    with refused("DEADLINE_EXCEEDED"):
        ttrpc.task.Wait.future(api.WaitRequest(id=b.id), timeout=0.2).result()
    with daemon.ttrpc_client(namespace=ttrpc.namespace) as other:
        waits = [other.task.Wait.future(api.WaitRequest(id=b.id)) for _ in range(50)]
        other.task.State(api.StateRequest(id=b.id))
    assert all(waiting.done() for waiting in waits)
    b.kill()
    assert b.wait() == 137


def test_create_whose_time_is_over_leaves_nothing(tbox: MakeBox, ttrpc: TtrpcClient) -> None:
    b = tbox("sleep", "1000")
    request = api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))
    with refused("DEADLINE_EXCEEDED"):
        ttrpc.task.Create.future(request, timeout=0.000001).result()
    events = ttrpc.runtime.Events(runtime_pb2.EventsRequest(since=1, ids=[b.id]))
    assert next(event for event in events if event.topic == "/tasks/delete")
    pid = b.make()
    b.delete()
    wait.process_gone(pid)


def test_many_containers_at_once_on_one_connection(tbox: MakeBox, ttrpc: TtrpcClient) -> None:
    boxes = [tbox(*shell(f"exit {number}")) for number in range(20)]
    made = [ttrpc.task.Create.future(api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))) for b in boxes]
    assert all(answer.result().pid > 0 for answer in made)
    waits = [b.waiting() for b in boxes]
    for answer in [ttrpc.task.Start.future(api.StartRequest(id=b.id)) for b in boxes]:
        answer.result()
    assert [waiting.result().exit_status for waiting in waits] == list(range(20))
    for answer in [ttrpc.task.Delete.future(api.DeleteRequest(id=b.id)) for b in boxes]:
        answer.result()
