"""containerd's task service (``containerd.task.v2`` and ``v3``, whose messages are the same): a method for each RPC."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from shimd.api.containerd import process_pb2, runc_options_pb2
from shimd.api.containerd import task_v3_pb2 as api
from shimd.errors import Unimplemented
from shimd.oci.read import read_process, read_resources
from shimd.rpc.service import Call
from shimd.service import convert
from shimd.service.control import Control
from shimd.service.lifecycle import CreateRequest, ExecRequest, Lifecycle
from shimd.service.metrics import metrics
from shimd.service.options import read_options
from shimd.service.records import Container, StdioPaths

_EMPTY = Empty()


class HasId(Protocol):
    """A request that names a container."""

    id: str


class TaskService:
    """State changes are Lifecycle's and Control's; here are the words of the protocol."""

    def __init__(self, lifecycle: Lifecycle, control: Control) -> None:
        self._lifecycle = lifecycle
        self._control = control
        self._registry = lifecycle.registry

    async def create(self, call: Call, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        if request.checkpoint:
            raise Unimplemented("create from a checkpoint is not supported yet")
        container = await self._lifecycle.create(
            call.namespace,
            CreateRequest(
                request.id,
                request.bundle,
                rootfs=convert.mounts(request.rootfs),
                stdio=_stdio(request),
                terminal=request.terminal,
                options=read_options(request.options),
                origin=call.origin,
            ),
        )
        return api.CreateTaskResponse(pid=container.init.pid)

    async def start(self, call: Call, request: api.StartRequest) -> api.StartResponse:
        process = self._container(call, request).process(request.exec_id)
        await self._lifecycle.start(process)
        return api.StartResponse(pid=process.pid)

    async def exec(self, call: Call, request: api.ExecProcessRequest) -> Empty:
        container = self._container(call, request)
        # The document's own "terminal" is what the image wanted; the client knows what it offers.
        process = read_process(request.spec.value)._replace(terminal=request.terminal)
        self._lifecycle.add_exec(container, ExecRequest(request.exec_id, process, _stdio(request)))
        return _EMPTY

    async def state(self, call: Call, request: api.StateRequest) -> api.StateResponse:
        container = self._container(call, request)
        process = container.process(request.exec_id)
        ended = process.exit
        return api.StateResponse(
            id=container.id,
            bundle=container.bundle,
            pid=process.pid,
            status=process.status,
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.terminal,
            exit_status=ended.code if ended else 0,
            exited_at=convert.timestamp(ended.exited_at_ns) if ended else None,
            exec_id=request.exec_id,
        )

    async def wait(self, call: Call, request: api.WaitRequest) -> api.WaitResponse:
        process = self._container(call, request).process(request.exec_id)
        ended = await asyncio.shield(process.exited)
        return api.WaitResponse(exit_status=ended.code, exited_at=convert.timestamp(ended.exited_at_ns))

    async def delete(self, call: Call, request: api.DeleteRequest) -> api.DeleteResponse:
        process = self._container(call, request).process(request.exec_id)
        ended = await self._lifecycle.delete(process)
        if ended is None:
            return api.DeleteResponse()
        return api.DeleteResponse(
            pid=process.pid, exit_status=ended.code, exited_at=convert.timestamp(ended.exited_at_ns)
        )

    async def kill(self, call: Call, request: api.KillRequest) -> Empty:
        process = self._container(call, request).process(request.exec_id)
        await self._control.kill(process, request.signal, everyone=request.all)
        return _EMPTY

    async def pids(self, call: Call, request: api.PidsRequest) -> api.PidsResponse:
        container = self._container(call, request)
        execs = {process.pid: process.exec_id for process in container.running_execs()}
        pids = await self._control.pids(container)
        return api.PidsResponse(
            processes=[process_pb2.ProcessInfo(pid=pid, info=_details(execs.get(pid, ""))) for pid in pids]
        )

    async def pause(self, call: Call, request: api.PauseRequest) -> Empty:
        await self._control.pause(self._container(call, request))
        return _EMPTY

    async def resume(self, call: Call, request: api.ResumeRequest) -> Empty:
        await self._control.resume(self._container(call, request))
        return _EMPTY

    async def update(self, call: Call, request: api.UpdateTaskRequest) -> Empty:
        container = self._container(call, request)
        await self._control.update(container, read_resources(request.resources.value))
        return _EMPTY

    async def stats(self, call: Call, request: api.StatsRequest) -> api.StatsResponse:
        stats = await self._control.stats(self._container(call, request))
        return api.StatsResponse(stats=convert.pack(metrics(stats)))

    async def resize_pty(self, call: Call, request: api.ResizePtyRequest) -> Empty:
        process = self._container(call, request).process(request.exec_id)
        self._control.resize(process, request.width, request.height)
        return _EMPTY

    async def close_io(self, call: Call, request: api.CloseIORequest) -> Empty:
        process = self._container(call, request).process(request.exec_id)
        if request.stdin:
            self._lifecycle.close_stdin(process)
        return _EMPTY

    async def checkpoint(self, call: Call, request: api.CheckpointTaskRequest) -> Empty:
        raise Unimplemented("checkpoint is not supported yet")

    async def connect(self, call: Call, request: api.ConnectRequest) -> api.ConnectResponse:
        container = self._registry.find(call.namespace, request.id)
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=container.init.pid if container else 0)

    async def shutdown(self, call: Call, request: api.ShutdownRequest) -> Empty:
        """The daemon serves others and stays; with ``now`` the container named is ended."""
        container = self._registry.find(call.namespace, request.id)
        if container is not None and request.now:
            await self._lifecycle.to_the_end(self._lifecycle.remove(container))
        return _EMPTY

    def _container(self, call: Call, request: HasId) -> Container:
        return self._registry.get(call.namespace, request.id)


def _stdio(request: api.CreateTaskRequest | api.ExecProcessRequest) -> StdioPaths:
    return StdioPaths(request.stdin, request.stdout, request.stderr)


def _details(exec_id: str) -> Any | None:
    return convert.pack(runc_options_pb2.ProcessDetails(exec_id=exec_id)) if exec_id else None
