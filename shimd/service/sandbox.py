"""containerd's sandbox service (``containerd.runtime.sandbox.v1``): pods without a pause container.

A sandbox is a container of ours, whose program is a page of memory that waits; see ``shimd.runtime.pod``. So it lives,
ends, is found again and is removed by the same rules as any other.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import DecodeError

from shimd.api.containerd import metric_pb2, platform_pb2, pod_pb2
from shimd.api.containerd import sandbox_pb2 as api
from shimd.errors import InvalidArgument, NotFound, Unimplemented
from shimd.oci.read import MAX_BYTES
from shimd.records import Record
from shimd.rpc.service import Call
from shimd.runtime import pod
from shimd.runtime.pod import PodFiles
from shimd.runtime.state import CONFIG_FILE, is_id, read_file
from shimd.service import convert, pods
from shimd.service.control import Control
from shimd.service.lifecycle import CreateRequest, Lifecycle
from shimd.service.metrics import metrics
from shimd.service.records import RUNNING, STOPPED, Container

_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Wanted(Record):
    """``base`` is for ``pod.config``; ``owner`` is closed when the sandbox is made."""

    base: dict[str, Any]
    files: PodFiles
    owner: pod.Owner | None = None


class SandboxService:
    """A method for each RPC."""

    def __init__(self, lifecycle: Lifecycle, control: Control) -> None:
        self._lifecycle = lifecycle
        self._control = control
        self._registry = lifecycle.registry

    async def create_sandbox(self, call: Call, request: api.CreateSandboxRequest) -> api.CreateSandboxResponse:
        if not is_id(request.sandbox_id):
            raise InvalidArgument(f"invalid sandbox ID format: {request.sandbox_id[:64]!r}")
        if request.rootfs:
            raise Unimplemented("a sandbox has no root file system of its own")
        wanted = await self._lifecycle.in_thread(_wanted, request)
        directory = self._lifecycle.runtime.state_directory(call.namespace, request.sandbox_id)
        create = CreateRequest(
            request.sandbox_id,
            request.bundle_path,
            config=pod.config(wanted.base, directory),
            origin=call.origin,
            pod=wanted.files,
        )
        try:
            await self._lifecycle.create(call.namespace, create)
        finally:
            if wanted.owner is not None:
                wanted.owner.close()
        return api.CreateSandboxResponse()

    async def start_sandbox(self, call: Call, request: api.StartSandboxRequest) -> api.StartSandboxResponse:
        sandbox = self._get(call, request.sandbox_id)
        await self._lifecycle.start(sandbox.init)
        spec = await self._lifecycle.in_thread(sandbox.runtime.config_bytes)
        return api.StartSandboxResponse(
            pid=sandbox.init.pid,
            created_at=convert.timestamp(sandbox.created_at_ns),
            spec=Packed(type_url=_SPEC_TYPE, value=spec),
        )

    async def platform(self, call: Call, request: api.PlatformRequest) -> api.PlatformResponse:
        self._get(call, request.sandbox_id)
        machine = os.uname().machine
        architecture = _ARCHITECTURES.get(machine, machine)
        return api.PlatformResponse(platform=platform_pb2.Platform(os="linux", architecture=architecture))

    async def stop_sandbox(self, call: Call, request: api.StopSandboxRequest) -> api.StopSandboxResponse:
        """Nothing here would react to a gentler signal, so the time-out has no meaning."""
        sandbox = self._get(call, request.sandbox_id)
        await self._lifecycle.to_the_end(self._stop(sandbox))
        return api.StopSandboxResponse()

    async def wait_sandbox(self, call: Call, request: api.WaitSandboxRequest) -> api.WaitSandboxResponse:
        ended = await asyncio.shield(self._get(call, request.sandbox_id).init.exited)
        return api.WaitSandboxResponse(exit_status=ended.code, exited_at=convert.timestamp(ended.exited_at_ns))

    async def sandbox_status(self, call: Call, request: api.SandboxStatusRequest) -> api.SandboxStatusResponse:
        sandbox = self._get(call, request.sandbox_id)
        ended = sandbox.init.exit
        ready = sandbox.init.status == RUNNING
        return api.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            pid=0 if ended else sandbox.init.pid,
            state="SANDBOX_READY" if ready else "SANDBOX_NOTREADY",
            info=await self._lifecycle.in_thread(_information, sandbox) if request.verbose else None,
            created_at=convert.timestamp(sandbox.created_at_ns),
            exited_at=convert.timestamp(ended.exited_at_ns) if ended else None,
        )

    async def ping_sandbox(self, call: Call, request: api.PingRequest) -> api.PingResponse:
        self._get(call, request.sandbox_id)
        return api.PingResponse()

    async def shutdown_sandbox(self, call: Call, request: api.ShutdownSandboxRequest) -> api.ShutdownSandboxResponse:
        """Also after a create that failed, so one that is not there is fine. The daemon serves others and stays."""
        sandbox = self._find(call, request.sandbox_id)
        if sandbox is not None:
            await self._lifecycle.to_the_end(remove_pod(self._lifecycle, sandbox))
        return api.ShutdownSandboxResponse()

    async def sandbox_metrics(self, call: Call, request: api.SandboxMetricsRequest) -> api.SandboxMetricsResponse:
        sandbox = self._get(call, request.sandbox_id)
        stats = await self._control.pod_stats(sandbox)
        metric = metric_pb2.Metric(id=sandbox.id, data=convert.pack(metrics(stats)))
        metric.timestamp.GetCurrentTime()
        return api.SandboxMetricsResponse(metrics=metric)

    # ---- how -------------------------------------------------------------------------------------------------------

    def _find(self, call: Call, sandbox_id: str) -> Container | None:
        found = self._registry.find(call.namespace, sandbox_id)
        return found if found is not None and found.is_sandbox else None

    def _get(self, call: Call, sandbox_id: str) -> Container:
        found = self._find(call, sandbox_id)
        if found is None:
            raise NotFound(f"sandbox {sandbox_id} not found in namespace {call.namespace}")
        return found

    async def _stop(self, sandbox: Container) -> None:
        """With it end the containers of the pod, whose namespaces are gone from outside."""
        await asyncio.gather(*map(self._lifecycle.end, (*self._registry.members(sandbox), sandbox)))


async def remove_pod(lifecycle: Lifecycle, sandbox: Container) -> None:
    """The containers of the pod, too, which normally are gone by then."""
    await asyncio.gather(*map(lifecycle.remove, lifecycle.registry.members(sandbox)))
    await lifecycle.remove(sandbox)


def _wanted(request: api.CreateSandboxRequest) -> _Wanted:
    """Reads files. Raises InvalidArgument."""
    config = _pod_config(request.options)
    wanted = _from_spec(request) if config is None else _from_pod(config, request)
    if not request.annotations:
        return wanted
    annotations = {**wanted.base.get("annotations", {}), **request.annotations}
    return wanted._replace(base={**wanted.base, "annotations": annotations})


def _from_pod(config: pod_pb2.PodSandboxConfig, request: api.CreateSandboxRequest) -> _Wanted:
    base = pods.base_of(config, request.sandbox_id, request.netns_path)
    files = pods.files_of(config)._replace(owner=pod.root_of(base))
    if not pods.has_user_namespace(config) or not request.netns_path:
        return _Wanted(base, files)
    owner = pod.Owner(request.netns_path)
    return _Wanted(pods.with_user_namespace(base, owner.path), files, owner)


def _from_spec(request: api.CreateSandboxRequest) -> _Wanted:
    """What a client that knows nothing of Kubernetes has put into the bundle, if anything."""
    path = os.path.join(request.bundle_path, CONFIG_FILE)
    try:
        spec = json.loads(read_file(path, MAX_BYTES))
    except FileNotFoundError:
        spec = {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"read {path}: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("annotations", {}), dict):
        raise InvalidArgument(f"read {path}: it, or its annotations, are no object")
    base = pods.base_of_spec(spec, request.netns_path)
    return _Wanted(base, PodFiles(str(base.get("hostname", "")), owner=pod.root_of(base)))


def _pod_config(options: Packed) -> pod_pb2.PodSandboxConfig | None:
    """None when there are no options, as from clients that know nothing of Kubernetes."""
    name = options.type_url.rpartition("/")[2]
    if not name or name == "google.protobuf.Empty":
        return None
    if name != pod_pb2.PodSandboxConfig.DESCRIPTOR.full_name:
        raise InvalidArgument(f"sandbox options of type {name!r} are not understood")
    try:
        return pod_pb2.PodSandboxConfig.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"sandbox options are malformed: {error}") from error


def _information(sandbox: Container) -> dict[str, str]:
    """For people, by way of ``crictl inspectp``. Reads a file."""
    document = {
        "pid": 0 if sandbox.init.status == STOPPED else sandbox.init.pid,
        "cgroupPaths": dict(sandbox.runtime.state.cgroup_paths),
        "runtimeSpec": json.loads(sandbox.runtime.config_bytes()),
    }
    return {"info": json.dumps(document)}
