"""The ttrpc server: the same services as over gRPC, in frames on a Unix socket. Unary calls only.

- Calls of one connection run side by side; each is a task. When the connection ends its calls are cancelled; what a
  service must finish it shields itself.
- The answers that a client does not read stop the reading of its requests, so a slow client holds up nobody but itself.
- A malformed frame is answered on its stream and the connection goes on, as with containerd's own server.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from shimd.api.containerd import ttrpc_pb2 as wire
from shimd.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ShimdError, Unimplemented
from shimd.records import Record
from shimd.rpc.frames import DATA, MAX_PAYLOAD, REQUEST, RESPONSE, Frame, FrameReader, pack
from shimd.rpc.identifiers import check_identifier
from shimd.rpc.peer import may_connect
from shimd.rpc.service import DEFAULT_NAMESPACE, Call, Service, rpc_name
from shimd.rpc.status import status_of

# containerd's client sends the first; the second is gRPC's name for it.
NAMESPACE_KEYS = ("containerd-namespace-ttrpc", "containerd-namespace")

MAX_CALLS = 16384  # under way on one connection

_NANOSECONDS = 1e9

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Method(Record):
    """One unary RPC; the transport's side of it."""

    name: str
    parse: Callable[[bytes], Any]
    implementation: Callable[[Call, Any], Awaitable[Message]]


def unary_methods(services: Iterable[Service]) -> dict[tuple[str, str], Method | None]:
    """By (service, method); None for streams, which are known and cannot be called."""
    return {
        (service.descriptor.full_name, method.name): None
        if method.server_streaming or method.client_streaming
        else Method(
            method.full_name,
            GetMessageClass(method.input_type).FromString,
            getattr(service.implementation, rpc_name(method.name)),
        )
        for service in services
        for method in service.descriptor.methods
    }


class TtrpcServer:
    """Serves ``services`` to root, to its own user and to ``allowed_uids``, on as many sockets as it is told to."""

    def __init__(self, services: Iterable[Service], allowed_uids: frozenset[int]) -> None:
        self.methods: Mapping[tuple[str, str], Method | None] = unary_methods(services)
        self.allowed_uids = allowed_uids
        self.connections: set[_Connection] = set()
        self._listening: list[asyncio.Server] = []

    async def listen(self, listener: socket.socket, *, origin: str = "", namespace: str = "") -> None:
        """Accept from ``listener``, which is ours from now on; calls say that they come from ``origin``, and are of
        ``namespace`` where they do not say.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: _Connection(self, origin, namespace or DEFAULT_NAMESPACE), sock=listener, backlog=socket.SOMAXCONN
        )
        self._listening.append(server)

    def stop_accepting(self) -> None:
        for server in self._listening:
            server.close()
        self._listening.clear()

    async def stop(self, grace: float) -> None:
        """End all connections; calls that are under way get ``grace`` seconds, then they are cancelled."""
        self.stop_accepting()
        if calls := self._calls():
            await asyncio.wait(calls, timeout=grace)
        for connection in tuple(self.connections):
            connection.close()
        if calls := self._calls():
            await asyncio.wait(calls)

    def _calls(self) -> list[asyncio.Task[None]]:
        return [call for connection in self.connections for call in connection.calls.values()]


class _Connection(asyncio.Protocol):
    __slots__ = ("_last_stream", "_loop", "_namespace", "_origin", "_reader", "_server", "_transport", "calls")

    def __init__(self, server: TtrpcServer, origin: str, namespace: str) -> None:
        self._server = server
        self._namespace = namespace
        self._origin = origin
        self._reader = FrameReader()
        self._last_stream = 0
        self.calls: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if may_connect(transport.get_extra_info("socket"), self._server.allowed_uids):
            self._server.connections.add(self)
        else:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._cancel()

    def close(self) -> None:
        """Answers that are written already are still sent, if the client takes them at once."""
        self._cancel()
        self._transport.close()

    def _cancel(self) -> None:
        for call in self.calls.values():
            call.cancel()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        for frame in self._reader.feed(data):
            try:
                self._receive(frame)
            except ShimdError as error:
                self._answer(frame.stream, error=error)

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _receive(self, frame: Frame) -> None:
        """Begin the call; raises what is wrong with the frame."""
        if frame.excess:
            raise ResourceExhausted(f"message length {frame.excess} exceeds the maximum of {MAX_PAYLOAD}")
        if frame.stream % 2 == 0:
            raise InvalidArgument("stream ids of a client must be odd")
        if frame.kind == DATA and frame.stream > self._last_stream:
            raise InvalidArgument("data for a stream that was never opened")
        if frame.kind != REQUEST:
            return  # data for a stream that we have refused, or what future versions may send
        if frame.stream <= self._last_stream:
            raise InvalidArgument("stream ids must grow, and cannot be used again")
        self._last_stream = frame.stream
        request = _parsed(wire.Request.FromString, frame.payload, "request")
        method = self._method(request.service, request.method)
        call = Call(_namespace(request.metadata) or self._namespace, method.name, self._origin)
        message = _parsed(method.parse, request.payload, f"request of {method.name}")
        if len(self.calls) >= MAX_CALLS:
            raise ResourceExhausted(f"more than {MAX_CALLS} calls are under way on this connection")
        task = self._loop.create_task(self._serve(frame.stream, method, call, message, request.timeout_nano))
        self.calls[frame.stream] = task
        task.add_done_callback(lambda _: self.calls.pop(frame.stream, None))

    def _method(self, service: str, name: str) -> Method:
        method = self._server.methods.get((service, name))
        if method is not None:
            return method
        if (service, name) in self._server.methods:
            raise Unimplemented(f"{service}/{name} is a stream: call it over gRPC")
        raise Unimplemented(f"method {service}/{name} is not known")

    async def _serve(self, stream: int, method: Method, call: Call, message: object, timeout_ns: int) -> None:
        try:
            if timeout_ns:
                answer = await _limited(method, call, message, timeout_ns / _NANOSECONDS)
            else:
                answer = await method.implementation(call, message)
            self._answer(stream, payload=answer.SerializeToString())
        except asyncio.CancelledError as error:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            self._answer(stream, error=error, what=method.name)  # what it waited for was cancelled, not the call
        except Exception as error:  # noqa: BLE001  every error becomes a status
            self._answer(stream, error=error, what=method.name)

    def _answer(self, stream: int, *, payload: bytes = b"", error: BaseException | None = None, what: str = "") -> None:
        if self._transport.is_closing():
            return
        data = _response(payload) if error is None else _failure(error, what)
        if len(data) > MAX_PAYLOAD:
            data = _failure(ResourceExhausted(f"the answer's length {len(data)} exceeds the maximum of {MAX_PAYLOAD}"))
        self._transport.write(pack(stream, RESPONSE, data))


def _response(payload: bytes) -> bytes:
    return wire.Response(payload=payload).SerializeToString()


def _failure(error: BaseException, what: str = "") -> bytes:
    status = status_of(error, what=what)
    return wire.Response(status=wire.Status(code=status.code, message=status.message)).SerializeToString()


async def _limited(method: Method, call: Call, message: object, seconds: float) -> Message:
    """Raises DeadlineExceeded after ``seconds``, which may be over before we begin."""
    try:
        async with asyncio.timeout(seconds) as scope:
            return await method.implementation(call, message)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"{method.name} took longer than {seconds:g} s") from error


def _parsed(parse: Callable[[bytes], T], data: bytes, what: str) -> T:
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidArgument(f"{what} is malformed: {error}") from error


def _namespace(metadata: Iterable[wire.KeyValue]) -> str:
    """Empty where none is named. Of several values of a key the first counts, as in containerd; raises InvalidArgument
    for a malformed one.
    """
    found = {pair.key.lower(): pair.value for pair in reversed(list(metadata))}
    for key in NAMESPACE_KEYS:
        if key in found:
            return check_identifier(found[key], kind="namespace")
    return ""
