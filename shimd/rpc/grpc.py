"""The gRPC server: services in, status codes out, health and reflection beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shimd.errors import InvalidArgument
from shimd.rpc.identifiers import check_identifier
from shimd.rpc.origin import origin_of
from shimd.rpc.service import DEFAULT_NAMESPACE, Call, Service, rpc_name
from shimd.rpc.status import status_of

__all__ = ["Call", "Service", "build_server", "namespace_of", "rpc_name", "set_serving"]

NAMESPACE_KEY = "containerd-namespace"
HINT_KEY = "shimd-hint-bin"

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]


class Health(Protocol):
    """grpc_health's servicer for asyncio, as far as it is used here."""

    async def set(self, service: str, status: int, /) -> None: ...


class Limits(Protocol):
    """The settings that the server needs."""

    @property
    def max_message_bytes(self) -> int: ...


def build_server(services: Sequence[Service], limits: Limits) -> tuple[grpc.aio.Server, Health]:
    """A server that is not listening yet, and the health service that its owner sets to (NOT_)SERVING."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.so_reuseport", 0),
        )
    )
    names = []
    for service in services:
        server.add_generic_rpc_handlers((_handlers(service),))
        names.append(service.descriptor.full_name)
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    return server, health_servicer


async def set_serving(health_servicer: Health, names: Iterable[str], *, serving: bool) -> None:
    """Set the health of the whole server ("") and of the services named."""
    status = health_pb2.HealthCheckResponse
    value = status.SERVING if serving else status.NOT_SERVING
    for name in ("", *names):
        await health_servicer.set(name, value)


def _handlers(service: Service) -> grpc.GenericRpcHandler[Any, Any]:
    return grpc.method_handlers_generic_handler(
        service.descriptor.full_name,
        {
            method.name: _handler(method, getattr(service.implementation, rpc_name(method.name)))
            for method in service.descriptor.methods
        },
    )


def _handler(method: MethodDescriptor, implementation: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
    parse = GetMessageClass(method.input_type).FromString
    name = method.full_name
    if method.server_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(_streaming(implementation, name), parse, _serialize)
    return grpc.unary_unary_rpc_method_handler(_unary(implementation, name), parse, _serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(
    implementation: Callable[[Call, Any], Awaitable[Message]], name: str
) -> Callable[[Any, Context], Awaitable[Message]]:
    async def serve(request: Any, context: Context) -> Message:
        try:
            return await implementation(_call(context, name), request)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  every error becomes a status, here and below
            return await _abort(context, error, name)

    return serve


def _streaming(
    implementation: Callable[[Call, Any], AsyncGenerator[Message, None]], name: str
) -> Callable[[Any, Context], Awaitable[None]]:
    async def serve(request: Any, context: Context) -> None:
        # Written, not yielded: when the caller goes away, the service's generator ends at once, not when collected.
        try:
            async with contextlib.aclosing(implementation(_call(context, name), request)) as messages:
                async for message in messages:
                    await context.write(message)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, name)

    return serve


async def _abort(context: Context, error: Exception, name: str) -> NoReturn:
    status = status_of(error, what=name)
    trailing = ((HINT_KEY, status.hint.encode()),) if status.hint else ()
    await context.abort(_CODES[status.code], status.message, trailing)


def _call(context: Context, name: str) -> Call:
    return Call(namespace_of(context), name, origin_of(context.peer()))


def namespace_of(context: Context) -> str:
    """The caller's namespace; raises InvalidArgument for a malformed one."""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            if not isinstance(value, str):
                raise InvalidArgument("namespace is not text")
            return check_identifier(value, kind="namespace")
    return DEFAULT_NAMESPACE
