"""A blocking ttrpc client of the daemon, shaped like the gRPC one: what a test does with that, it can do with this."""

from __future__ import annotations

import socket
import struct
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from shimd.api.containerd import sandbox_pb2, task_v2_pb2, task_v3_pb2, ttrpc_pb2
from shimd.api.v1 import containerd_pb2, runtime_pb2

TIMEOUT = 30.0

HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE, DATA = 1, 2, 3

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class TtrpcError(grpc.RpcError):
    """With the methods of a gRPC error that tests use."""

    def __init__(self, status: ttrpc_pb2.Status) -> None:
        super().__init__(status.message)
        self._status = status

    def code(self) -> grpc.StatusCode:
        return _CODES[self._status.code]

    def details(self) -> str:
        return self._status.message


class Connection:
    """Frames on a socket, nothing more: for tests of the protocol itself."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, stream: int, payload: bytes, *, kind: int = REQUEST, flags: int = 0) -> None:
        self.socket.sendall(HEADER.pack(len(payload), stream, kind, flags) + payload)

    def receive(self) -> tuple[int, ttrpc_pb2.Response]:
        """(stream, response); raises EOFError."""
        length, stream, kind, flags = HEADER.unpack(self._read(HEADER.size))
        assert (kind, flags) == (RESPONSE, 0)
        return stream, ttrpc_pb2.Response.FromString(self._read(length))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise EOFError("the connection was closed")
            data += chunk
        return data


class TtrpcClient:
    """``task`` (version 3), ``task_v2`` and ``runtime`` (unary calls only), all on one connection."""

    def __init__(self, path: str, *, namespace: str = "default") -> None:
        self.namespace = namespace
        self._connection = Connection(path)
        self._connection.socket.settimeout(None)
        self._lock = threading.Lock()
        self._stream = -1
        self._waiting: dict[int, Future[bytes]] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.task = _Stub(self, task_v3_pb2.DESCRIPTOR.services_by_name["Task"])
        self.task_v2 = _Stub(self, task_v2_pb2.DESCRIPTOR.services_by_name["Task"])
        self.sandbox = _Stub(self, sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"])
        self.containerds = _Stub(self, containerd_pb2.DESCRIPTOR.services_by_name["Containerds"])
        self.runtime = _Stub(self, runtime_pb2.DESCRIPTOR.services_by_name["Runtime"])

    def __enter__(self) -> TtrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._connection.socket.close()

    def send(self, request: ttrpc_pb2.Request) -> Future[bytes]:
        answer: Future[bytes] = Future()
        with self._lock:
            self._stream += 2
            self._waiting[self._stream] = answer
            self._connection.send(self._stream, request.SerializeToString())
        return answer

    def _read(self) -> None:
        try:
            while True:
                stream, response = self._connection.receive()
                answer = self._waiting.pop(stream)
                if response.status.code:
                    answer.set_exception(TtrpcError(response.status))
                else:
                    answer.set_result(response.payload)
        except (EOFError, OSError) as error:
            for answer in self._waiting.values():
                answer.set_exception(error)


class _Stub:
    def __init__(self, client: TtrpcClient, service: Any) -> None:
        self._client = client
        self._service = service

    def __getattr__(self, name: str) -> _Method:
        return _Method(self._client, self._service.methods_by_name[name])


class _Method:
    def __init__(self, client: TtrpcClient, descriptor: Any) -> None:
        self._client = client
        self._descriptor = descriptor

    def __call__(self, request: Any, *, timeout: float = TIMEOUT) -> Any:
        return self.future(request, timeout=timeout).result()

    def future(self, request: Any, *, timeout: float = TIMEOUT) -> _Answer:
        metadata = [ttrpc_pb2.KeyValue(key="containerd-namespace-ttrpc", value=self._client.namespace)]
        answer = self._client.send(
            ttrpc_pb2.Request(
                service=self._descriptor.containing_service.full_name,
                method=self._descriptor.name,
                payload=request.SerializeToString(),
                timeout_nano=int(timeout * 1e9),
                metadata=metadata,
            )
        )
        return _Answer(answer, GetMessageClass(self._descriptor.output_type))


class _Answer:
    def __init__(self, answer: Future[bytes], message: Any) -> None:
        self._answer = answer
        self._message = message

    def done(self) -> bool:
        return self._answer.done()

    def result(self, timeout: float = TIMEOUT) -> Any:
        """Raises TtrpcError."""
        return self._message.FromString(self._answer.result(timeout))
