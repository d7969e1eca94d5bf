"""``shimd.v1.Containerds``, for the launcher that containerd runs."""

from __future__ import annotations

from shimd.api.v1 import containerd_pb2 as api
from shimd.events.containerds import Containerds
from shimd.events.forward import Addresses
from shimd.rpc.identifiers import check_identifier
from shimd.rpc.service import Call
from shimd.service import convert
from shimd.service.lifecycle import Lifecycle
from shimd.service.sandbox import remove_pod


class ContainerdsService:
    def __init__(self, containerds: Containerds, lifecycle: Lifecycle) -> None:
        self._containerds = containerds
        self._lifecycle = lifecycle

    async def register(self, call: Call, request: api.RegisterRequest) -> api.RegisterResponse:
        sockets = await self._containerds.register(
            Addresses(request.ttrpc_address, request.grpc_address, request.publish_binary),
            namespace=check_identifier(request.namespace, kind="namespace") if request.namespace else "",
        )
        return api.RegisterResponse(ttrpc_socket=sockets.ttrpc, grpc_socket=sockets.grpc)

    async def remove(self, call: Call, request: api.RemoveRequest) -> api.RemoveResponse:
        container = self._lifecycle.registry.get(call.namespace, request.id)
        await self._lifecycle.to_the_end(remove_pod(self._lifecycle, container))
        ended = container.init.exited.result()
        return api.RemoveResponse(
            pid=container.init.pid, exit_status=ended.code, exited_at=convert.timestamp(ended.exited_at_ns)
        )
