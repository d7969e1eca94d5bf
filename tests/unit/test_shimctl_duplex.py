"""A call that ends in the middle of a write, as grpc.aio shows it: two statuses, in either order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from clients.shimctl import duplex
from clients.shimctl.duplex import Duplex
from shimd.api.v1 import runtime_pb2 as pb

OF_A_WRITE = (grpc.StatusCode.INTERNAL, "Internal error from Core")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "container x not found")
OK = (grpc.StatusCode.OK, "")

Status = tuple[grpc.StatusCode, str]


class FakeCall:
    """What grpc.aio's does where a write meets the end: the write fails, each new status calls the callbacks."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.callbacks: list[Callable[[Any], None]] = []
        self.messages: asyncio.Queue[pb.ProcessEvent | None] = asyncio.Queue()
        self.is_cancelled = False

    def set_status(self, status: Status) -> None:
        self.status = status
        for callback in self.callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    async def write(self, request: pb.AttachRequest) -> None:
        if self.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        await asyncio.sleep(0)
        self.set_status(OF_A_WRITE)
        raise self.error()

    def error(self) -> AioRpcError:
        assert self.status is not None
        return AioRpcError(self.status[0], Metadata(), Metadata(), self.status[1], None)

    async def __aiter__(self) -> AsyncIterator[pb.ProcessEvent]:
        while (message := await self.messages.get()) is not None:
            yield message
        if await self.code() is not grpc.StatusCode.OK:
            raise self.error()

    async def code(self) -> grpc.StatusCode:
        assert self.status is not None
        return self.status[0]

    async def details(self) -> str:
        assert self.status is not None
        return self.status[1]

    async def initial_metadata(self) -> Metadata:
        return Metadata()

    async def trailing_metadata(self) -> Metadata:
        return Metadata()

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
async def call() -> FakeCall:
    return FakeCall()


def duplex_of(call: Any) -> Duplex:
    return Duplex(call)


async def all_events(both: Duplex) -> list[pb.ProcessEvent]:
    return [event async for event in both.events()]


EXITED = pb.ProcessEvent(exited=pb.Exited(exit_status=7))


async def test_a_write_that_meets_the_end_hides_no_event(call: FakeCall) -> None:
    both = duplex_of(call)
    call.messages.put_nowait(EXITED)
    call.messages.put_nowait(None)
    await both.send(pb.AttachRequest(stdin=b"x"))
    await both.send(pb.AttachRequest(stdin=b"y"))
    call.set_status(OK)
    assert await all_events(both) == [EXITED]
    await both.close()
    assert call.is_cancelled


@pytest.mark.parametrize("real", [NOT_FOUND, OK], ids=["failed", "ok"])
@pytest.mark.parametrize("order", ["before", "after", "late"])
async def test_the_end_is_what_the_daemon_says(call: FakeCall, real: Status, order: str) -> None:
    both = duplex_of(call)
    writing = asyncio.create_task(both.send(pb.AttachRequest(stdin=b"x")))
    await asyncio.sleep(0)  # it is under way
    if order == "before":
        call.set_status(real)
    await writing
    assert call.status == OF_A_WRITE
    if order == "after":
        call.set_status(real)
    call.messages.put_nowait(None)
    reading = asyncio.create_task(all_events(both))
    if order == "late":
        done, _ = await asyncio.wait({reading}, timeout=0.01)
        assert not done
        call.set_status(real)
    if real == OK:
        assert await reading == []
    else:
        with pytest.raises(AioRpcError, match="container x not found"):
            await reading
    await both.close()


async def test_a_status_that_never_comes_is_not_waited_for(call: FakeCall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplex, "_STATUS_SECONDS", 0.01)
    both = duplex_of(call)
    await both.send(pb.AttachRequest(stdin=b"x"))
    call.messages.put_nowait(None)
    with pytest.raises(AioRpcError, match="Internal error from Core"):
        await all_events(both)
    await both.close()


async def test_close_ends_what_was_posted(call: FakeCall) -> None:
    both = duplex_of(call)
    both.post(pb.AttachRequest(signal=15))
    await both.close()
    assert call.status is None
