"""One call that follows a process: its output and end to the client, input, window sizes and signals to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from shimd.api.v1 import runtime_pb2 as api
from shimd.errors import FailedPrecondition, InvalidArgument, NotFound
from shimd.service import convert
from shimd.service.control import Control
from shimd.service.records import Process
from shimd.supervise.attach import Attachment, AttachPoint
from shimd.supervise.exits import Exit


class Session:
    """Attached to ``process`` until ``close``. ``requests`` is the client's side of the call, if it has one."""

    def __init__(
        self, process: Process, control: Control, requests: AsyncIterator[api.AttachRequest] | None = None
    ) -> None:
        self._process = process
        self._control = control
        point = process.streams.attach_point if process.streams is not None else None
        self._attachment: Attachment | None = point.attach() if point is not None else None
        self._point: AttachPoint | None = point
        self._feeder: asyncio.Task[None] | None = None
        if requests is not None:
            self._feeder = asyncio.get_running_loop().create_task(self._feed(requests))
            self._feeder.add_done_callback(self._fed)

    async def close(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
        if self._feeder is not None:
            self._feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeder

    async def output(self) -> AsyncIterator[api.ProcessEvent]:
        """Until all of it has been handed over."""
        if self._attachment is None:
            return
        async for chunk in self._attachment:
            # Both enumerate alike: the values of Stream are the numbers of the attach point.
            output = api.Output(stream=chunk.stream, data=chunk.data, dropped=chunk.dropped)  # type: ignore[arg-type]
            yield api.ProcessEvent(output=output)
        self._raise_failure()

    async def exit(self) -> Exit:
        """Raises what was wrong with the client's requests."""
        exited = self._process.exited
        if self._feeder is None or exited.done():
            return await asyncio.shield(exited)
        feeder = self._feeder
        while not exited.done():
            waiting: set[asyncio.Future[None] | asyncio.Future[Exit]] = {exited}
            if not feeder.done():
                waiting.add(feeder)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
        return exited.result()

    async def _feed(self, requests: AsyncIterator[api.AttachRequest]) -> None:
        async for request in requests:
            await self._serve(request)

    async def _serve(self, request: api.AttachRequest) -> None:
        match request.WhichOneof("request"):
            case "stdin":
                if self._point is None:
                    raise FailedPrecondition("standard input is not attached")
                await self._point.write_stdin(request.stdin)
            case "close_stdin":
                self._control.close_stdin(self._process)
            case "resize":
                self._control.resize(self._process, request.resize.width, request.resize.height)
            case "signal":
                # The process may have ended while the signal was on its way.
                with contextlib.suppress(NotFound):
                    await self._control.kill(self._process, request.signal, everyone=False)
            case other:
                raise InvalidArgument(f"{other or 'an empty message'} may only come first")

    def _fed(self, feeder: asyncio.Task[None]) -> None:
        """Wake whoever waits for output, so that a bad request ends the call."""
        if not feeder.cancelled() and feeder.exception() is not None and self._attachment is not None:
            self._attachment.end()

    def _raise_failure(self) -> None:
        feeder = self._feeder
        if feeder is not None and feeder.done() and not feeder.cancelled():
            feeder.result()


def exited_event(process: Process, ended: Exit) -> api.ProcessEvent:
    return api.ProcessEvent(
        exited=api.Exited(
            exit_status=ended.code,
            exited_at=convert.timestamp(ended.exited_at_ns),
            user_time=convert.duration(ended.utime_us * 1000),
            system_time=convert.duration(ended.stime_us * 1000),
            max_rss_bytes=ended.maxrss_kib * 1024,
            oom_killed=process.container.oom_killed,
            phases=convert.phases(process.timings),
        )
    )


def created_event(process: Process, warnings: tuple[str, ...]) -> api.ProcessEvent:
    return api.ProcessEvent(
        created=api.Created(
            id=process.container.id,
            exec_id=process.exec_id,
            pid=process.pid,
            terminal=process.terminal,
            phases=convert.phases(process.timings),
            warnings=warnings,
        )
    )


def started_event(process: Process) -> api.ProcessEvent:
    return api.ProcessEvent(
        started=api.Started(
            pid=process.pid,
            started_at=convert.timestamp(process.started_at_ns),
            phases=convert.phases(process.timings),
        )
    )
