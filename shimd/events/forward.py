"""The ways by which events get to a containerd: its ttrpc socket, its gRPC socket, its own program's ``publish``."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

import grpc

from shimd.api.containerd import forward_pb2
from shimd.records import Record
from shimd.rpc.status import DEADLINE_EXCEEDED, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN, StatusError
from shimd.rpc.ttrpc_client import TtrpcClient, socket_path

TIMEOUT = 5.0  # seconds for one event, as containerd's own shims have it

_TTRPC_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_GRPC_METHOD = "/containerd.services.events.v1.Events/Forward"
_MAX_COMPLAINT = 500  # characters of what the program says


class Addresses(Record):
    """Of one containerd; "" is what it has not."""

    ttrpc: str
    grpc: str
    binary: str


class Unreachable(StatusError):
    """Nobody listens at the address, so nothing was sent."""


class Way(Protocol):
    """``forward`` takes a serialised ForwardRequest and raises StatusError, UNIMPLEMENTED when this is not the way."""

    async def forward(self, request: bytes) -> None: ...

    async def close(self) -> None: ...


class OverTtrpc:
    def __init__(self, address: str) -> None:
        self._address = address
        self._client: TtrpcClient | None = None

    async def forward(self, request: bytes) -> None:
        if self._client is None or self._client.is_closed:
            try:
                self._client = await TtrpcClient.connect(self._address)
            except StatusError as error:
                raise Unreachable(error.code, str(error)) from error
        try:
            await self._client.call(_TTRPC_SERVICE, "Forward", request, timeout=TIMEOUT)
        except StatusError as error:
            if error.code in (DEADLINE_EXCEEDED, UNAVAILABLE):
                await self.close()
            raise

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class OverGrpc:
    def __init__(self, address: str) -> None:
        self._path = socket_path(address)
        self._channel: grpc.aio.Channel | None = None

    async def forward(self, request: bytes) -> None:
        if self._channel is None:
            _check_listening(self._path)
            self._channel = grpc.aio.insecure_channel(
                f"unix:{self._path}", options=(("grpc.use_local_subchannel_pool", 1),)
            )
        try:
            await self._channel.unary_unary(_GRPC_METHOD, bytes, bytes)(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            # A channel waits longer and longer before it connects again; a new one does not.
            await self.close()
            raise StatusError(error.code().value[0], error.details() or "") from error

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None


def _check_listening(path: str) -> None:
    """Raises Unreachable. An attempt of gRPC itself would cost threads and descriptors each time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # somebody is there, and busy
        except OSError as error:
            raise Unreachable(UNAVAILABLE, f"connect to {path}: {(error.strerror or str(error)).lower()}") from error


class ByProgram:
    """``containerd publish``: a process for each event."""

    def __init__(self, binary: str, address: str) -> None:
        self._binary = binary
        self._address = ["--address", socket_path(address)] if address else []

    async def forward(self, request: bytes) -> None:
        envelope = forward_pb2.ForwardRequest.FromString(request).envelope
        arguments = [*self._address, "publish", "--topic", envelope.topic, "--namespace", envelope.namespace]
        try:
            process = await asyncio.create_subprocess_exec(
                self._binary,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        except OSError as error:
            raise StatusError(UNAVAILABLE, f"run {self._binary}: {(error.strerror or '').lower()}") from error
        try:
            async with asyncio.timeout(TIMEOUT):
                _, complaint = await process.communicate(envelope.event.SerializeToString())
        except TimeoutError as error:
            raise StatusError(DEADLINE_EXCEEDED, f"{self._binary} publish took longer than {TIMEOUT:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            text = complaint.decode(errors="replace").strip()[-_MAX_COMPLAINT:]
            raise StatusError(UNKNOWN, f"{self._binary} publish: {text or process.returncode}")


class Forwarder:
    """Takes the first way that leads there. One that containerd does not know is not tried again."""

    def __init__(self, addresses: Addresses) -> None:
        self._ways: list[Way] = []
        if addresses.ttrpc:
            self._ways.append(OverTtrpc(addresses.ttrpc))
        if addresses.grpc:
            self._ways.append(OverGrpc(addresses.grpc))
        self._program = ByProgram(addresses.binary, addresses.grpc) if addresses.binary else None

    async def forward(self, request: bytes) -> None:
        """Raises StatusError."""
        unreachable: Unreachable | None = None
        for way in tuple(self._ways):
            try:
                return await way.forward(request)
            except Unreachable as error:
                unreachable = error
            except StatusError as error:
                if error.code != UNIMPLEMENTED:
                    raise
                self._ways.remove(way)
                await way.close()
        if unreachable is not None:
            raise unreachable  # the program would not get there either
        if self._program is None:
            raise StatusError(UNIMPLEMENTED, "containerd offers no way to hand over events")
        await self._program.forward(request)

    async def close(self) -> None:
        for way in self._ways:
            await way.close()
