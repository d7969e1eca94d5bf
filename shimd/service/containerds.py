"""``shimd.v1.Containerds``, for the launcher that containerd runs."""

from __future__ import annotations

from shimd.api.v1 import containerd_pb2 as api
from shimd.events.containerds import Containerds
from shimd.events.forward import Addresses
from shimd.rpc.identifiers import check_identifier
from shimd.rpc.service import Call


class ContainerdsService:
    def __init__(self, containerds: Containerds) -> None:
        self._containerds = containerds

    async def register(self, call: Call, request: api.RegisterRequest) -> api.RegisterResponse:
        sockets = await self._containerds.register(
            Addresses(request.ttrpc_address, request.grpc_address, request.publish_binary),
            namespace=check_identifier(request.namespace, kind="namespace") if request.namespace else "",
        )
        return api.RegisterResponse(ttrpc_socket=sockets.ttrpc, grpc_socket=sockets.grpc)
