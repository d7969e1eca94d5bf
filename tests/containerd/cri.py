"""A client of the Container Runtime Interface, since Debian has no crictl: requests are made of dictionaries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc

from tests.support import session

TIMEOUT = 60.0

_HERE = Path(__file__).parent


class CriError(Exception):
    """The answer to a call is an error."""

    def __init__(self, method: str, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.details = str(error.details())
        super().__init__(f"{method}: {self.code.name}: {self.details}")


class Cri:
    """``cri.call("ExecSync", container_id=..., cmd=[...])`` is the answer as a message. Use as a context manager.

    ``explain`` is asked for a note to errors.
    """

    def __init__(self, socket: str, explain: Callable[[], str] = str) -> None:
        self._explain = explain
        options = (
            # With the shared pool the closed connection would stay open for a while.
            ("grpc.use_local_subchannel_pool", 1),
            # After a restart of containerd.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        )
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def __enter__(self) -> Cri:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, *, seconds: float = TIMEOUT, **fields: Any) -> Any:
        """Raises CriError."""
        descriptor = _methods()[method]
        request = json_format.ParseDict(fields, message_factory.GetMessageClass(descriptor.input_type)())
        call = self._channel.unary_unary(
            f"/{descriptor.containing_service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
        )
        try:
            return call(request, timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            failure = CriError(method, error)
            failure.add_note(self._explain())
            raise failure from None


@functools.cache
def _methods() -> dict[str, Any]:
    """By name; no two services have one of the same name."""
    compiled = session.cache_dir() / f"{session.TAG}-cri"
    arguments = ["protoc", f"-I{_HERE}", f"--descriptor_set_out={compiled}", str(_HERE / "cri.proto")]
    try:
        assert protoc.main(arguments) == 0, "cri.proto does not compile"
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    finally:
        compiled.unlink(missing_ok=True)
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    services = [pool.FindServiceByName(f"runtime.v1.{name}") for name in ("RuntimeService", "ImageService")]
    return {method.name: method for service in services for method in service.methods}
