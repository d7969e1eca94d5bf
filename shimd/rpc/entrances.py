"""The public sockets, in pairs: gRPC and ttrpc. All lead to the same services."""

from __future__ import annotations

import socket

from shimd.rpc.front import Front
from shimd.rpc.ttrpc import TtrpcServer


class Entrances:
    """``inner`` is the path of the gRPC server's own socket; see rpc/front.py for who may come in."""

    def __init__(self, ttrpc: TtrpcServer, inner: str, allowed_uids: frozenset[int]) -> None:
        self._ttrpc = ttrpc
        self._inner = inner
        self._allowed_uids = allowed_uids
        self._fronts: list[Front] = []

    async def open(self, grpc: socket.socket, ttrpc: socket.socket, *, origin: str = "", namespace: str = "") -> None:
        """Take over two listeners; calls say that they come from ``origin``; those over ttrpc that name no namespace
        are of ``namespace``.
        """
        front = Front(grpc, self._inner, self._allowed_uids, origin=origin)
        front.start()
        self._fronts.append(front)
        await self._ttrpc.listen(ttrpc, origin=origin, namespace=namespace)

    def stop_accepting(self) -> None:
        for front in self._fronts:
            front.stop_accepting()
        self._ttrpc.stop_accepting()

    def close(self) -> None:
        for front in self._fronts:
            front.close()
