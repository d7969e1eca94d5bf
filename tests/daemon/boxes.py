"""Containers made through the task API, in short words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from shimd.api.containerd import process_pb2, task_events_pb2
from shimd.api.containerd import task_v3_pb2 as api
from shimd.api.v1 import runtime_pb2
from tests.support.client import Client
from tests.support.specs import runc_default
from tests.support.ttrpc import TtrpcClient

Status = process_pb2.Status
EVENTS = {f"containerd.events.{name}": cls for name, cls in vars(task_events_pb2).items() if name.startswith("Task")}


class Box:
    """One container; ``make`` is create."""

    def __init__(self, client: Client | TtrpcClient, container_id: str, bundle: Path) -> None:
        self.client = client
        self.task = client.task
        self.id = container_id
        self.bundle = bundle

    def make(self, **fields: Any) -> int:
        request = api.CreateTaskRequest(id=self.id, bundle=str(self.bundle), **fields)
        return int(self.task.Create(request).pid)

    def start(self, exec_id: str = "") -> int:
        return int(self.task.Start(api.StartRequest(id=self.id, exec_id=exec_id)).pid)

    def exec(self, exec_id: str, *args: str, process: Mapping[str, Any] | None = None, **fields: Any) -> None:
        document = {"args": args, "cwd": "/", "env": ["PATH=/bin"], **(process or {})}
        request = api.ExecProcessRequest(id=self.id, exec_id=exec_id, **fields)
        request.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        request.spec.value = json.dumps(document).encode()
        self.task.Exec(request)

    def wait(self, exec_id: str = "") -> int:
        return int(self.task.Wait(api.WaitRequest(id=self.id, exec_id=exec_id)).exit_status)

    def waiting(self, exec_id: str = "") -> Any:
        """A Wait under way."""
        return self.task.Wait.future(api.WaitRequest(id=self.id, exec_id=exec_id))

    def kill(self, signal: int = 9, exec_id: str = "", *, everyone: bool = False) -> None:
        self.task.Kill(api.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=everyone))

    def state(self, exec_id: str = "") -> api.StateResponse:
        answer: api.StateResponse = self.task.State(api.StateRequest(id=self.id, exec_id=exec_id))
        return answer

    def status(self, exec_id: str = "") -> str:
        return Status.Name(self.state(exec_id).status)

    def delete(self, exec_id: str = "") -> api.DeleteResponse:
        answer: api.DeleteResponse = self.task.Delete(api.DeleteRequest(id=self.id, exec_id=exec_id))
        return answer

    def pause(self) -> None:
        self.task.Pause(api.PauseRequest(id=self.id))

    def resume(self) -> None:
        self.task.Resume(api.ResumeRequest(id=self.id))

    def pids(self) -> list[process_pb2.ProcessInfo]:
        return list(self.task.Pids(api.PidsRequest(id=self.id)).processes)

    def events(self) -> list[tuple[str, Any]]:
        """(topic, message) of all so far."""
        request = runtime_pb2.EventsRequest(since=1, ids=[self.id], replay_only=True)
        return [(event.topic, unpack(event)) for event in self.client.runtime.Events(request)]

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.events()]

    def remove(self) -> None:
        """Whatever state it is in."""
        with contextlib.suppress(grpc.RpcError):
            self.task.Shutdown(api.ShutdownRequest(id=self.id, now=True))


def unpack(event: runtime_pb2.Event) -> Any:
    return EVENTS[event.event.type_url].FromString(event.event.value)


@contextlib.contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """The call inside fails with this gRPC code and a message that has ``text`` in it."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value  # also a grpc.Call, which the stubs do not say
    assert (error.code().name, text in (error.details() or "")) == (code, True), error.details()


MakeBox = Callable[..., Box]


@pytest.fixture
def box(client: Client, bundle: Callable[..., Path], busybox: Path, new_id: Callable[[], str]) -> Iterator[MakeBox]:
    """``box("sleep", "9")``: a container that is not created yet; removed after the test."""
    boxes: list[Box] = []

    def make(*args: str, spec: Mapping[str, Any] | None = None) -> Box:
        made = Box(client, new_id(), bundle(spec or runc_default(*args), rootfs=busybox))
        boxes.append(made)
        return made

    yield make
    for made in boxes:
        made.remove()


def shell(script: str) -> Sequence[str]:
    return "/bin/sh", "-c", script
