"""A call with a stream in each direction, as grpc.aio leaves it to its users.

- One write at a time.
- A call ends when the daemon says so, in the middle of a write, too. To grpc.aio such a write has failed, and so has
  the call, with INTERNAL ("Internal error from Core"), which replaces the status from the daemon or is replaced by it,
  as it happens. What the daemon sent before can still be read. So a write never fails here, and the end is as the
  daemon has told it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import AioRpcError

from shimd.api.v1 import runtime_pb2 as pb

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

    Call = StreamStreamCall[pb.AttachRequest, pb.ProcessEvent]

_OF_A_WRITE = "Internal error from Core"
_STATUS_SECONDS = 5.0  # it is on its way


class Duplex:
    """Owns ``call``, on which nothing has been sent, and the tasks that ``post`` starts; ``close`` ends both."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._status: asyncio.Future[AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._status_was_set)

    async def send(self, request: pb.AttachRequest) -> None:
        """Returns when it is on its way, or the call has ended."""
        async with self._lock:
            with contextlib.suppress(asyncio.InvalidStateError, AioRpcError):
                await self._call.write(request)

    def post(self, request: pb.AttachRequest) -> None:
        """``send``, from where nothing can be awaited."""
        task = asyncio.get_running_loop().create_task(self.send(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def events(self) -> AsyncIterator[pb.ProcessEvent]:
        """Raises AioRpcError with the status of the daemon."""
        try:
            async for event in self._call:
                yield event
        except AioRpcError as error:
            status = await self._real_status() if _is_of_a_write(error) else error
            if status.code() is not grpc.StatusCode.OK:
                raise status from None

    async def close(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _status_was_set(self, _: Any) -> None:
        """Called each time. The next may be set before any task has run, so it is read here."""
        reading = _status_of(self._call)
        try:
            reading.send(None)
        except StopIteration as read:
            status: AioRpcError = read.value
            if not _is_of_a_write(status) and not self._status.done():
                self._status.set_result(status)
        else:
            reading.close()

    async def _real_status(self) -> AioRpcError:
        try:
            return await asyncio.wait_for(asyncio.shield(self._status), _STATUS_SECONDS)
        except TimeoutError:
            return await _status_of(self._call)


async def _status_of(call: Call) -> AioRpcError:
    """Waits for nothing once there is a status."""
    return AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details(), None
    )


def _is_of_a_write(status: AioRpcError) -> bool:
    return status.code() is grpc.StatusCode.INTERNAL and status.details() == _OF_A_WRITE
