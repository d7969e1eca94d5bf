"""shimd's own service (``shimd.v1.Runtime``): the same containers, with calls that follow a whole life."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from functools import partial

from google.protobuf.any_pb2 import Any

from shimd.api.v1 import runtime_pb2 as api
from shimd.errors import FailedPrecondition, InvalidArgument, NotFound
from shimd.events.bus import Delivery, EventBus
from shimd.events.model import Filter
from shimd.oci.model import ConsoleSize
from shimd.oci.read import read_process
from shimd.records import Record
from shimd.rpc.service import Call
from shimd.service import convert, describe
from shimd.service.control import Control, check_window
from shimd.service.lifecycle import CreateRequest, ExecRequest, Lifecycle
from shimd.service.metrics import metrics
from shimd.service.options import create_options, read_options
from shimd.service.records import STOPPED, Container, StdioPaths
from shimd.service.session import Session, created_event, exited_event, started_event

_ATTACH = "attach:"
_SIGKILL = 9
_SHORTEST_INTERVAL = 0.1  # seconds between two answers of Stats

Requests = AsyncIterator[api.AttachRequest]
Events = AsyncGenerator[api.ProcessEvent, None]


class About(Record):
    """What the daemon knows of itself."""

    version: api.VersionResponse
    features: Callable[[], api.FeaturesResponse]  # blocks


class RuntimeService:
    """A method for each RPC; streams are asynchronous generators."""

    def __init__(self, lifecycle: Lifecycle, control: Control, bus: EventBus, about: About) -> None:
        self._lifecycle = lifecycle
        self._control = control
        self._bus = bus
        self._about = about
        self._registry = lifecycle.registry

    # ---- run, attach -----------------------------------------------------------------------------------------------

    def run(self, call: Call, request: api.RunRequest) -> Events:
        return self._run(call, request, None)

    async def attach(self, call: Call, requests: Requests) -> Events:
        first = await anext(aiter(requests), None)
        if first is None:
            raise InvalidArgument("Attach was given no message")
        async with contextlib.aclosing(self._begin(call, first, requests)) as events:
            async for event in events:
                yield event

    def _begin(self, call: Call, first: api.AttachRequest, requests: Requests) -> Events:
        match first.WhichOneof("request"):
            case "run":
                return self._run(call, first.run, requests)
            case "exec":
                return self._exec(call, first.exec, requests)
            case "target":
                return self._attach(call, first.target, requests)
        raise InvalidArgument("the first message of Attach must say what to attach to or what to make")

    async def _run(self, call: Call, request: api.RunRequest, requests: Requests | None) -> Events:
        # A terminal gets its size before the program looks at it, so the program has to wait for that.
        gate = request.HasField("window")
        container = await self._lifecycle.create(
            call.namespace,
            CreateRequest(
                request.id or secrets.token_hex(6),
                request.bundle or "/",
                config=request.spec or None,
                rootfs=convert.mounts(request.rootfs),
                stdio=_stdio(request),
                options=read_options(request.options),
                gate=gate,
                followed=True,
            ),
        )
        process = container.init
        finished = False
        try:
            session = Session(process, self._control, requests)
            try:
                yield created_event(process, container.runtime.warnings)
                if gate:
                    self._control.resize(process, request.window.width, request.window.height)
                    await self._lifecycle.start(process)
                yield started_event(process)
                async for event in session.output():
                    yield event
                ended = await session.exit()
            finally:
                await session.close()
            if not request.keep:
                finished = True
                await self._lifecycle.delete(process)
            yield exited_event(process, ended)
        finally:
            if not request.keep and not finished:
                self._lifecycle.in_background(self._lifecycle.remove(container), "ending an abandoned run", container)

    async def _exec(self, call: Call, request: api.ExecRequest, requests: Requests) -> Events:
        container = self._registry.get(call.namespace, request.id)
        spec = read_process(request.process)
        if request.HasField("window"):
            check_window(request.window.width, request.window.height)
            spec = spec._replace(console_size=ConsoleSize(request.window.height, request.window.width))
        process = self._lifecycle.add_exec(
            container, ExecRequest(request.exec_id or secrets.token_hex(6), spec, _stdio(request), followed=True)
        )
        finished = False
        try:
            await self._lifecycle.start(process)
            session = Session(process, self._control, requests)
            try:
                yield created_event(process, process.launched.warnings if process.launched else ())
                yield started_event(process)
                async for event in session.output():
                    yield event
                ended = await session.exit()
            finally:
                await session.close()
            if not request.keep:
                finished = True
                await self._lifecycle.delete(process)
            yield exited_event(process, ended)
        finally:
            if not request.keep and not finished:
                self._lifecycle.in_background(
                    self._lifecycle.remove_exec(process), "ending an abandoned exec", container
                )

    async def _attach(self, call: Call, request: api.AttachTarget, requests: Requests) -> Events:
        process = self._registry.get(call.namespace, request.id).process(request.exec_id)
        if process.streams is None or process.streams.attach_point is None:
            raise FailedPrecondition(
                f"the streams of {process.id} are not held by the daemon",
                hint=f"they go to {', '.join(filter(None, process.stdio)) or 'nowhere'}",
            )
        session = Session(process, self._control, requests)
        try:
            yield created_event(process, ())
            if process.started_at_ns:
                yield started_event(process)
            async for event in session.output():
                yield event
            yield exited_event(process, await session.exit())
        finally:
            await session.close()

    # ---- look ------------------------------------------------------------------------------------------------------

    async def list(self, call: Call, request: api.ListRequest) -> api.ListResponse:
        found = self._registry.all("" if request.all_namespaces else call.namespace)
        ids, statuses = set(request.ids), set(request.statuses)
        return api.ListResponse(
            containers=[
                describe.container(c)
                for c in found
                if (not ids or c.id in ids) and (not statuses or c.init.status in statuses)
            ]
        )

    async def inspect(self, call: Call, request: api.InspectRequest) -> api.InspectResponse:
        container = self._registry.get(call.namespace, request.id)
        return await self._lifecycle.in_thread(describe.inspect, self._lifecycle.runtime, container)

    async def plan(self, call: Call, request: api.PlanRequest) -> api.PlanResponse:
        runtime = self._lifecycle.runtime
        if request.process:
            container = self._registry.get(call.namespace, request.id)
            compiling = partial(runtime.plan_exec, container.runtime, read_process(request.process))
        else:
            options = create_options(read_options(request.options), gate=False)
            compiling = partial(
                runtime.plan,
                request.id or "plan",
                request.bundle or "/",
                config=request.spec or None,
                options=options,
            )
        return describe.plan(await self._lifecycle.in_thread(compiling))

    async def events(self, call: Call, request: api.EventsRequest) -> AsyncGenerator[api.Event, None]:
        wanted = Filter("" if request.all_namespaces else call.namespace, frozenset(request.ids), tuple(request.topics))
        async for delivery in self._bus.subscribe(wanted, since=request.since, follow=not request.replay_only):
            yield _event(delivery)

    async def stats(self, call: Call, request: api.StatsRequest) -> AsyncGenerator[api.StatsResponse, None]:
        interval = request.interval.ToNanoseconds() / 1e9
        if request.HasField("interval") and interval < _SHORTEST_INTERVAL:
            raise InvalidArgument(f"interval is shorter than {_SHORTEST_INTERVAL} s")
        while True:
            yield api.StatsResponse(stats=[s async for s in self._all_stats(self._measurable(call, request))])
            if not interval:
                return
            await asyncio.sleep(interval)

    def _measurable(self, call: Call, request: api.StatsRequest) -> Iterable[Container]:
        if request.ids:
            return [self._registry.get(call.namespace, container_id) for container_id in request.ids]
        return self._registry.all("" if request.all_namespaces else call.namespace)

    async def _all_stats(self, containers: Iterable[Container]) -> AsyncIterator[api.ContainerStats]:
        for container in containers:
            if container.init.status == STOPPED:
                continue
            with contextlib.suppress(NotFound, FailedPrecondition):  # it ended while the others were measured
                measured = metrics(await self._control.stats(container))
                answer = api.ContainerStats(namespace=container.namespace, id=container.id)
                answer.timestamp.GetCurrentTime()
                answer.metrics.CopyFrom(convert.pack(measured))
                yield answer

    async def features(self, call: Call, request: api.FeaturesRequest) -> api.FeaturesResponse:
        return await self._lifecycle.in_thread(self._about.features)

    async def version(self, call: Call, request: api.VersionRequest) -> api.VersionResponse:
        return self._about.version


def _stdio(request: api.RunRequest | api.ExecRequest) -> StdioPaths:
    if request.HasField("stdio"):
        return StdioPaths(request.stdio.stdin, request.stdio.stdout, request.stdio.stderr)
    return StdioPaths(_ATTACH if request.interactive else "", _ATTACH, _ATTACH)


def _event(delivery: Delivery) -> api.Event:
    event = delivery.event
    return api.Event(
        sequence=event.sequence,
        timestamp=convert.timestamp(event.time_ns),
        namespace=event.namespace,
        topic=event.topic,
        event=Any(type_url=event.type_name, value=event.payload),
        missed=delivery.missed,
    )
