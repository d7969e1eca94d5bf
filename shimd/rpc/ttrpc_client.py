"""A ttrpc client: unary calls, any number of them at a time on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

from google.protobuf.message import DecodeError

from shimd.api.containerd import ttrpc_pb2 as wire
from shimd.rpc.frames import MAX_PAYLOAD, REQUEST, RESPONSE, FrameReader, pack
from shimd.rpc.status import DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE, StatusError

_LAST_STREAM = 0xFFFFFFFF


def socket_path(address: str) -> str:
    """The path in an address as containerd gives them: ``/path`` or ``unix:///path``."""
    return address.removeprefix("unix://")


class TtrpcClient(asyncio.Protocol):
    """One connection; made by ``connect``, it is of no use any more once ``is_closed``."""

    __slots__ = ("_loop", "_next_stream", "_reader", "_transport", "_waiting")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._next_stream = 1
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, address: str) -> TtrpcClient:
        """Raises StatusError (UNAVAILABLE)."""
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_unix_connection(cls, socket_path(address))
        except OSError as error:
            raise StatusError(UNAVAILABLE, f"connect to {address}: {(error.strerror or str(error)).lower()}") from error
        return client

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Calls that are under way fail. Idempotent."""
        self._transport.abort()

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float = 0.0,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """The serialised answer. Raises StatusError; after ``timeout`` seconds (0: never) DEADLINE_EXCEEDED."""
        request = wire.Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=int(timeout * 1e9),
            metadata=[wire.KeyValue(key=key, value=value) for key, value in (metadata or {}).items()],
        )
        stream, answer = self._send(request.SerializeToString())
        try:
            async with asyncio.timeout(timeout or None):
                return await answer
        except TimeoutError as error:
            raise StatusError(DEADLINE_EXCEEDED, f"{service}/{method} took longer than {timeout:g} s") from error
        finally:
            self._waiting.pop(stream, None)

    def _send(self, data: bytes) -> tuple[int, asyncio.Future[bytes]]:
        if len(data) > MAX_PAYLOAD:
            raise StatusError(RESOURCE_EXHAUSTED, f"message length {len(data)} exceeds the maximum of {MAX_PAYLOAD}")
        if self.is_closed or self._next_stream > _LAST_STREAM:
            self.close()
            raise StatusError(UNAVAILABLE, "the connection is closed")
        stream = self._next_stream
        self._next_stream += 2
        answer = self._waiting[stream] = self._loop.create_future()
        self._transport.write(pack(stream, REQUEST, data))
        return stream, answer

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(StatusError(UNAVAILABLE, "the connection was lost"))

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            answer = self._waiting.get(frame.stream)
            if frame.kind == RESPONSE and answer is not None and not answer.done():
                if frame.excess:
                    answer.set_exception(StatusError(RESOURCE_EXHAUSTED, f"an answer of {frame.excess} bytes"))
                else:
                    _settle(answer, frame.payload)


def _settle(answer: asyncio.Future[bytes], payload: bytes) -> None:
    try:
        response = wire.Response.FromString(payload)
    except DecodeError as error:
        answer.set_exception(StatusError(INTERNAL, f"the answer is malformed: {error}"))
        return
    if response.status.code:
        answer.set_exception(StatusError(response.status.code, response.status.message))
    else:
        answer.set_result(response.payload)
