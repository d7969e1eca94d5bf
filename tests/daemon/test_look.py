"""List, Inspect, Plan, Events, Stats, Features and Version of shimd.v1."""

from __future__ import annotations

import json
import os
import platform

from google.protobuf.duration_pb2 import Duration

from shimd.api.containerd import cgroups_v1_pb2, process_pb2
from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import MakeBox, refused, shell, unpack
from tests.support.client import Client
from tests.support.daemon import Daemon


def test_list(box: MakeBox, client: Client) -> None:
    created, running, stopped = box("sleep", "1"), box("sleep", "1000"), box(*shell("exit 3"))
    for b in (created, running, stopped):
        b.make()
    running.start()
    running.exec("e1", "sleep", "1000")
    running.start("e1")
    stopped.start()
    stopped.wait()
    found = client.runtime.List(api.ListRequest()).containers
    assert [c.id for c in found] == [created.id, running.id, stopped.id]
    assert {c.namespace for c in found} == {client.namespace}
    assert [process_pb2.Status.Name(c.status) for c in found] == ["CREATED", "RUNNING", "STOPPED"]
    assert list(found[1].command) == ["sleep", "1000"]
    assert [(e.exec_id, list(e.command), e.pid > 0) for e in found[1].execs] == [("e1", ["sleep", "1000"], True)]
    assert (found[2].pid, found[2].exit_status, found[2].HasField("exited_at")) == (0, 3, True)
    assert not found[0].HasField("started_at")


def test_list_is_filtered(box: MakeBox, client: Client, daemon: Daemon) -> None:
    one, two = box("sleep", "1"), box("sleep", "1000")
    one.make()
    two.make()
    two.start()

    def ids(**fields: object) -> set[str]:
        return {c.id for c in client.runtime.List(api.ListRequest(**fields)).containers}  # type: ignore[arg-type]

    assert ids(ids=[one.id, "nobody"]) == {one.id}
    assert ids(statuses=[process_pb2.RUNNING]) == {two.id}
    with daemon.client(namespace="other") as other:
        assert not other.runtime.List(api.ListRequest()).containers
        everywhere = other.runtime.List(api.ListRequest(all_namespaces=True)).containers
    assert {one.id, two.id} <= {c.id for c in everywhere}


def test_inspect(box: MakeBox, client: Client) -> None:
    b = box("sleep", "1000")
    pid = b.make(stdout="attach:")
    answer = client.runtime.Inspect(api.InspectRequest(id=b.id))
    assert answer.container.id == b.id
    assert answer.container.stdio.stdout == "attach:"
    assert json.loads(answer.spec)["process"]["args"] == ["sleep", "1000"]
    assert answer.rootfs.endswith("rootfs")
    assert os.path.isdir(answer.state_dir)
    assert all(os.path.isdir(path) for path in answer.cgroup_paths.values())
    state = json.loads(answer.state)
    assert (state["id"], state["status"], state["pid"], state["bundle"]) == (b.id, "created", pid, str(b.bundle))
    assert "launch" in {phase.name for phase in answer.phases}
    with refused("NOT_FOUND"):
        client.runtime.Inspect(api.InspectRequest(id="nobody"))


def test_plan(box: MakeBox, client: Client) -> None:
    b = box("true")
    answer = client.runtime.Plan(api.PlanRequest(bundle=str(b.bundle)))
    document = json.loads(answer.plan)
    assert document["steps"][-1]["op"] == "Execute"
    assert len(answer.steps) == len(document["stage"]) + len(document["steps"])
    assert not client.runtime.List(api.ListRequest()).containers


def test_plan_of_an_exec(box: MakeBox, client: Client) -> None:
    b = box("sleep", "1000")
    b.make()
    process = json.dumps({"args": ["true"], "cwd": "/tmp"}).encode()
    answer = client.runtime.Plan(api.PlanRequest(id=b.id, process=process))
    assert any("/tmp" in step for step in answer.steps)


def test_plan_of_a_malformed_spec(client: Client) -> None:
    with refused("INVALID_ARGUMENT", "/process"):
        client.runtime.Plan(api.PlanRequest(spec=b'{"ociVersion": "1.0.2", "process": 3}'))


def test_events_follow(box: MakeBox, client: Client) -> None:
    b = box("true")
    b.make()
    events = client.runtime.Events(api.EventsRequest(since=1, ids=[b.id]))
    first = next(events)
    assert (first.topic, first.namespace, first.missed) == ("/tasks/create", client.namespace, 0)
    assert unpack(first).container_id == b.id
    b.start()
    rest = [next(events) for _ in range(2)]
    assert [event.topic for event in rest] == ["/tasks/start", "/tasks/exit"]
    assert first.sequence < rest[0].sequence < rest[1].sequence
    assert rest[0].timestamp.ToNanoseconds() > first.timestamp.ToNanoseconds()
    events.cancel()


def test_events_are_replayed_from_a_number(box: MakeBox, client: Client) -> None:
    b = box("true")
    b.make()
    b.start()
    b.wait()
    everything = list(client.runtime.Events(api.EventsRequest(since=1, ids=[b.id], replay_only=True)))
    later = client.runtime.Events(api.EventsRequest(since=everything[1].sequence, ids=[b.id], replay_only=True))
    assert list(later) == everything[1:]


def test_events_are_filtered(box: MakeBox, client: Client, daemon: Daemon) -> None:
    b, other = box("true"), box("true")
    for made in (b, other):
        made.make()
        made.start()
        made.wait()

    def topics(**fields: object) -> list[str]:
        request = api.EventsRequest(since=1, replay_only=True, **fields)  # type: ignore[arg-type]
        return [event.topic for event in client.runtime.Events(request)]

    assert topics(topics=["/tasks/exit"]) == ["/tasks/exit"] * 2
    assert topics(ids=[b.id]) == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    assert len(topics(topics=["/tasks/"])) == 6
    assert topics(topics=["/other/"]) == []
    with daemon.client(namespace="elsewhere") as elsewhere:
        request = api.EventsRequest(since=1, replay_only=True, ids=[b.id])
        assert not list(elsewhere.runtime.Events(request))
        request.all_namespaces = True
        assert len(list(elsewhere.runtime.Events(request))) == 3


def test_stats(box: MakeBox, client: Client) -> None:
    one, two, idle = box("sleep", "1000"), box("sleep", "1000"), box("true")
    for b in (one, two, idle):
        b.make()
        b.start()
    idle.wait()
    [answer] = client.runtime.Stats(api.StatsRequest())
    assert {s.id for s in answer.stats} == {one.id, two.id}
    if answer.stats[0].metrics.type_url == "io.containerd.cgroups.v1.Metrics":
        assert cgroups_v1_pb2.Metrics.FromString(answer.stats[0].metrics.value).pids.current == 1
    interval = Duration(nanos=100_000_000)
    stream = client.runtime.Stats(api.StatsRequest(ids=[one.id], interval=interval))
    assert [len(next(stream).stats) for _ in range(3)] == [1, 1, 1]
    stream.cancel()


def test_stats_of_unknown_containers_or_too_often(client: Client) -> None:
    with refused("NOT_FOUND"):
        list(client.runtime.Stats(api.StatsRequest(ids=["nobody"])))
    with refused("INVALID_ARGUMENT", "interval"):
        list(client.runtime.Stats(api.StatsRequest(interval=Duration(nanos=1))))


def test_features(client: Client) -> None:
    answer = client.runtime.Features(api.FeaturesRequest())
    document = json.loads(answer.features)
    assert "linux" in document
    assert answer.findings
    assert all(finding.ok or finding.remedy for finding in answer.findings)


def test_version(client: Client, daemon: Daemon) -> None:
    answer = client.runtime.Version(api.VersionRequest())
    assert (answer.pid, answer.keeper_pid) == (daemon.pid, daemon.keeper_pid())
    assert answer.kernel == platform.release()
    assert answer.state_dir == str(daemon.state)
    assert {"containerd.task.v2.Task", "containerd.task.v3.Task", "shimd.v1.Runtime"} <= set(answer.services)
