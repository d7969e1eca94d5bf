"""What stands between gRPC and the services, with a context that records what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import grpc
import pytest

from shimd.errors import NotFound
from shimd.rpc import grpc as module
from shimd.rpc.grpc import Call, namespace_of, rpc_name


class Aborted(Exception):
    """As grpc.aio raises its own from abort()."""


class Context:
    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self.metadata = metadata
        self.written: list[Any] = []
        self.aborted: tuple[Any, ...] = ()

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> Any:
        return self.metadata

    async def write(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> NoReturn:
        self.aborted = (code.name, details, dict(trailing))
        raise Aborted


async def _call(implementation: Any, context: Context, *, stream: bool = False) -> Any:
    wrap: Any = module._streaming if stream else module._unary
    return await wrap(implementation, "shimd.v1.Runtime.List")("request", context)


@pytest.mark.parametrize(
    ("method", "name"),
    [("CloseIO", "close_io"), ("ResizePty", "resize_pty"), ("State", "state"), ("Pids", "pids")],
)
def test_names(method: str, name: str) -> None:
    assert rpc_name(method) == name


def test_namespace() -> None:
    def namespace(*metadata: tuple[str, str | bytes]) -> str:
        context: Any = Context(*metadata)
        return namespace_of(context)

    assert namespace() == "default"
    assert namespace(("user-agent", "x"), ("containerd-namespace", "k8s.io")) == "k8s.io"


async def test_answer() -> None:
    async def answer(call: Call, request: str) -> str:
        return f"{call.namespace} {call.method} {request}"

    context = Context(("containerd-namespace", "moby"))
    assert await _call(answer, context) == "moby shimd.v1.Runtime.List request"


@pytest.mark.parametrize("namespace", ["../x", "", b"bytes"])
async def test_malformed_namespace(namespace: str | bytes) -> None:
    async def never(call: Call, request: str) -> str:
        raise AssertionError

    context = Context(("containerd-namespace", namespace))
    with pytest.raises(Aborted):
        await _call(never, context)
    assert context.aborted[0] == "INVALID_ARGUMENT"


async def test_error_with_hint() -> None:
    async def fail(call: Call, request: str) -> str:
        raise NotFound("nothing", hint="ändere es")

    context = Context()
    with pytest.raises(Aborted):
        await _call(fail, context)
    assert context.aborted == ("NOT_FOUND", "nothing", {"shimd-hint-bin": "ändere es".encode()})


async def test_unforeseen_error_shows_no_traceback() -> None:
    async def fail(call: Call, request: str) -> str:
        raise ZeroDivisionError("secret")

    context = Context()
    with pytest.raises(Aborted):
        await _call(fail, context)
    assert context.aborted[0] == "INTERNAL"
    assert "secret" not in context.aborted[1]


async def test_stream_and_its_error() -> None:
    async def count(call: Call, request: str) -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number
        raise NotFound("no more")

    context = Context()
    with pytest.raises(Aborted):
        await _call(count, context, stream=True)
    assert context.written == [0, 1, 2]
    assert context.aborted[:2] == ("NOT_FOUND", "no more")


async def test_stream_ends_at_once_when_the_caller_goes() -> None:
    ended = False

    async def endless(call: Call, request: str) -> AsyncGenerator[int, None]:
        nonlocal ended
        try:
            while True:
                yield 1
        finally:
            ended = True

    context = Context()
    task = asyncio.create_task(_call(endless, context, stream=True))
    while not context.written:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert not context.aborted
