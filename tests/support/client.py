"""A plain gRPC client of the daemon: the generated stubs, one channel, the namespace on every call."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import grpc

from shimd.api.containerd import sandbox_pb2_grpc, task_v2_pb2_grpc, task_v3_pb2_grpc
from shimd.api.v1 import runtime_pb2_grpc

TIMEOUT = 30.0


class Client:
    """``task`` (version 3), ``task_v2``, ``sandbox`` and ``runtime``; use as a context manager.

    ``client.task.State(request)`` is a call, ``client.task.Wait.future(request)`` one under way.
    """

    def __init__(self, socket: str, *, namespace: str = "default") -> None:
        options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self.namespace = namespace
        self.task = _Stub(task_v3_pb2_grpc.TaskStub(self.channel), namespace)
        self.task_v2 = _Stub(task_v2_pb2_grpc.TaskStub(self.channel), namespace)
        self.sandbox = _Stub(sandbox_pb2_grpc.SandboxStub(self.channel), namespace)
        self.runtime = _Stub(runtime_pb2_grpc.RuntimeStub(self.channel), namespace)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()


class _Stub:
    """A stub whose calls carry the namespace, and a deadline, so that a test fails instead of hanging."""

    def __init__(self, stub: object, namespace: str) -> None:
        self._stub = stub
        self._namespace = namespace

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._stub, name), (("containerd-namespace", self._namespace),))


class _Method:
    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, request: Any, *, timeout: float | None = TIMEOUT) -> Any:
        return self._method(request, timeout=timeout, metadata=self._metadata)

    def future(self, request: Any, *, timeout: float | None = TIMEOUT) -> Any:
        return self._method.future(request, timeout=timeout, metadata=self._metadata)
