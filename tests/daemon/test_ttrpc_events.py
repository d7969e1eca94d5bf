"""Events of containers on their way from a real daemon to a containerd, which is restarted, and so is the daemon."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import task_v3_pb2 as api
from shimd.api.v1 import containerd_pb2
from tests.daemon.boxes import Box, shell
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.fake_containerd import FakeContainerd
from tests.support.specs import runc_default
from tests.support.ttrpc import TtrpcClient

LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.fixture
def containerd(place: Path) -> Iterator[FakeContainerd]:
    (place / "containerd").mkdir()
    with FakeContainerd(place / "containerd") as made:
        yield made


def register(daemon: Daemon, containerd: FakeContainerd, namespace: str = "default") -> containerd_pb2.RegisterResponse:
    request = containerd_pb2.RegisterRequest(
        ttrpc_address=containerd.socket, grpc_address="/nowhere", namespace=namespace
    )
    with daemon.ttrpc_client() as client:
        answer: containerd_pb2.RegisterResponse = client.containerds.Register(request)
    return answer


def events_of(containerd: FakeContainerd, box: Box, count: int) -> list[dict[str, Any]]:
    """The first ``count`` that containerd gets of the container."""
    deadline = time.monotonic() + wait.SECONDS
    while True:
        found = [event for event in containerd.events() if event["message"]["container_id"] == box.id]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"only {[event['topic'] for event in found]} came"
        time.sleep(0.005)


def topics_of(containerd: FakeContainerd, box: Box, count: int) -> list[str]:
    return [event["topic"] for event in events_of(containerd, box, count)]


MakeBox = Callable[..., Box]


@pytest.fixture
def make_box(place: Path, busybox: Path, new_id: Callable[[], str]) -> MakeBox:
    def make(client: Client | TtrpcClient, *args: str) -> Box:
        box_id = new_id()
        return Box(client, box_id, make_bundle(place / f"bundle-{box_id}", runc_default(*args), busybox))

    return make


def live(box: Box) -> None:
    box.make()
    box.start()
    box.wait()
    box.delete()


def test_whole_life(daemon: Daemon, containerd: FakeContainerd, make_box: MakeBox) -> None:
    containerd.start()
    sockets = register(daemon, containerd)
    assert stat.S_IMODE(os.stat(sockets.ttrpc_socket).st_mode) == 0o600
    with TtrpcClient(sockets.ttrpc_socket, namespace="k8s.io") as client:
        b = make_box(client, *shell("exit 3"))
        pid = b.make()
        b.exec("e", "true")
        b.start()
        b.wait()
        b.delete()
    events = events_of(containerd, b, 5)
    assert [event["topic"] for event in events] == [
        "/tasks/create",
        "/tasks/exec-added",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ]
    assert {event["namespace"] for event in events} == {"k8s.io"}
    assert not any(event["waiting"] for event in events)
    times = [event["timestamp"] for event in events]
    assert times == sorted(times)
    assert events[3]["message"] == {
        "container_id": b.id,
        "id": b.id,
        "pid": pid,
        "exit_status": 3,
        "exited_at": events[4]["message"]["exited_at"],
    }


def test_over_grpc_too(daemon: Daemon, containerd: FakeContainerd, make_box: MakeBox) -> None:
    containerd.start()
    sockets = register(daemon, containerd)
    with Client(sockets.grpc_socket) as client:
        b = make_box(client, "true")
        live(b)
    assert topics_of(containerd, b, 4) == LIFE


def test_each_containerd_gets_its_own(
    daemon: Daemon, containerd: FakeContainerd, place: Path, make_box: MakeBox
) -> None:
    (place / "other").mkdir()
    with FakeContainerd(place / "other") as other, daemon.client() as nobodys:
        containerd.start()
        other.start()
        mine, others = register(daemon, containerd), register(daemon, other)
        assert not set(map(str, (mine.ttrpc_socket, mine.grpc_socket))) & {others.ttrpc_socket, others.grpc_socket}
        with TtrpcClient(mine.ttrpc_socket) as client, TtrpcClient(others.ttrpc_socket) as other_client:
            boxes = [make_box(used, "true") for used in (client, nobodys, other_client)]
            for b in boxes:
                live(b)
        assert topics_of(containerd, boxes[0], 4) == LIFE
        assert topics_of(other, boxes[2], 4) == LIFE
        assert {event["message"]["container_id"] for event in containerd.events()} == {boxes[0].id}
        assert {event["message"]["container_id"] for event in other.events()} == {boxes[2].id}


def test_registering_again_gives_the_same_sockets(daemon: Daemon, containerd: FakeContainerd) -> None:
    assert register(daemon, containerd) == register(daemon, containerd)


def test_nothing_is_lost_while_containerd_is_away(
    daemon: Daemon, containerd: FakeContainerd, make_box: MakeBox
) -> None:
    containerd.start()
    with TtrpcClient(register(daemon, containerd).ttrpc_socket) as client:
        b = make_box(client, "sleep", "1000")
        b.make()
        b.start()
        assert topics_of(containerd, b, 2) == LIFE[:2]
        containerd.stop()
        b.exec("e", "true")
        b.start("e")
        b.wait("e")
        b.kill()
        b.wait()
        containerd.start("hangup", "lost", "ok")
        topics = topics_of(containerd, b, 7)
        assert topics == [
            *LIFE[:2],
            "/tasks/exec-added",
            "/tasks/exec-added",  # the answer to the first was lost
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exit",
        ]
        b.delete()
    assert topics_of(containerd, b, 8)[-1] == "/tasks/delete"


def test_nothing_is_lost_when_the_daemon_ends_while_containerd_is_away(
    place: Path, containerd: FakeContainerd, make_box: MakeBox
) -> None:
    with Daemon(place / "daemon") as daemon:
        sockets = register(daemon, containerd)
        with TtrpcClient(sockets.ttrpc_socket) as client:
            b = make_box(client, "sleep", "1000")
            b.make()
            b.start()
        for end in (daemon.kill, daemon.stop):
            end()
            daemon.start()
        containerd.start()
        assert topics_of(containerd, b, 2) == LIFE[:2]
        with TtrpcClient(sockets.ttrpc_socket) as client:
            b = Box(client, b.id, b.bundle)
            b.kill()
            b.wait()
            b.delete()
        assert topics_of(containerd, b, 4) == LIFE
        daemon.stop()
        daemon.start()
        assert not os.path.exists(sockets.ttrpc_socket), "a containerd without containers is forgotten"
        assert list((daemon.state / "containerds").iterdir()) == []


def test_many_events_in_order(daemon: Daemon, containerd: FakeContainerd, make_box: MakeBox) -> None:
    containerd.start()
    with TtrpcClient(register(daemon, containerd).ttrpc_socket) as client:
        boxes = [make_box(client, *shell(f"exit {number}")) for number in range(30)]
        for future in [client.task.Create.future(_create(b)) for b in boxes]:
            future.result()
        for future in [client.task.Start.future(api.StartRequest(id=b.id)) for b in boxes]:
            future.result()
        for b in boxes:
            b.wait()
            b.delete()
    for number, b in enumerate(boxes):
        events = events_of(containerd, b, 4)
        assert [event["topic"] for event in events] == LIFE
        assert events[2]["message"].get("exit_status", 0) == number


def _create(box: Box) -> api.CreateTaskRequest:
    return api.CreateTaskRequest(id=box.id, bundle=str(box.bundle))


def test_oom_kill_is_told_before_the_exit_after_a_restart_too(
    place: Path, containerd: FakeContainerd, busybox: Path
) -> None:
    containerd.start()
    with Daemon(place / "daemon") as daemon:
        socket = register(daemon, containerd).ttrpc_socket
        spec = runc_default(*shell("while ! test -e /go; do sleep 0.05; done; exec tail /dev/zero"))
        spec["linux"]["resources"] = {"memory": {"limit": 16 << 20}}
        with TtrpcClient(socket) as client:
            b = Box(client, f"oom-{os.getpid()}", make_bundle(place / "bundle", spec, busybox))
            b.make()
            b.start()
        daemon.stop()
        daemon.start()
        (busybox / "go").touch()
        with TtrpcClient(socket) as client:
            b = Box(client, b.id, b.bundle)
            assert b.wait() == 137
            b.delete()
        assert topics_of(containerd, b, 5) == ["/tasks/create", "/tasks/start", "/tasks/oom", *LIFE[2:]]
