"""The containerds that were made known, each with its queue of events; kept in files, so that a daemon that is started
again knows them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Collection

from shimd.errors import InvalidArgument
from shimd.events.forward import Addresses
from shimd.events.known import Known
from shimd.events.model import Event
from shimd.events.publisher import Publisher
from shimd.events.spool import Spool
from shimd.records import Record
from shimd.rpc.ttrpc_client import socket_path

_SUFFIX = ".json"
_OF_NAMESPACE = "-"  # not in a name

_log = logging.getLogger(__name__)


class Sockets(Record):
    """Paths where the daemon listens for one containerd."""

    ttrpc: str
    grpc: str


class Containerds:
    """``listen`` makes the daemon listen for an entrance, see ``entrance_of``; ``lock`` is the daemon's descriptor of
    its lock file.
    """

    def __init__(self, folder: str, listen: Callable[[str], Awaitable[Sockets]], lock: int) -> None:
        self._folder = folder
        self._known = Known(folder, lock)
        self._listen = listen
        self._publishers: dict[str, Publisher] = {}
        self._sockets: dict[str, Sockets] = {}
        self._lock = asyncio.Lock()

    def publish(self, event: Event) -> None:
        """To whom the container belongs, if to anybody."""
        publisher = self._publishers.get(event.origin)
        if publisher is not None:
            publisher.publish(event)

    async def register(self, addresses: Addresses, *, namespace: str = "") -> Sockets:
        """May be called again, with another binary too. Calls without a namespace are of ``namespace``. Raises
        InvalidArgument, OSError.
        """
        _check(addresses)
        name = name_of(addresses)
        async with self._lock:
            publisher = self._publishers.get(name)
            if publisher is None:
                self._save(name, addresses)
                publisher = self._publishers[name] = Publisher(addresses, Spool(self._spool(name)))
            elif publisher.addresses != addresses:
                self._save(name, addresses)
                await publisher.use(addresses)
            entrance = entrance_of(name, namespace)
            if entrance not in self._sockets:
                self._sockets[entrance] = await self._listen(entrance)
            sockets = self._sockets[entrance]
            if namespace:
                self._known.tell(addresses, namespace, sockets.ttrpc)
            return sockets

    def withdraw(self) -> None:
        """Nobody is to connect without asking any more."""
        self._known.withdraw()

    # ---- over a restart --------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Those that a former daemon knew; events flow from here on."""
        self._known.withdraw()
        for file in os.listdir(self._folder):
            name, suffix = os.path.splitext(file)
            if suffix == _SUFFIX:
                try:
                    addresses = self._read(name)
                except (OSError, ValueError, TypeError) as error:
                    _log.error("containerd %s is forgotten: %s", name, error)
                    os.unlink(self._file(name))
                else:
                    self._publishers[name] = Publisher(addresses, Spool(self._spool(name)))

    async def resume(self, used: Collection[str]) -> None:
        """Listen for them again at the entrances that containers came by. Those without such (``used``) and without
        events that wait are forgotten.
        """
        async with self._lock:
            for name, publisher in tuple(self._publishers.items()):
                entrances = [entrance for entrance in used if split_entrance(entrance)[0] == name]
                if entrances or not publisher.is_idle:
                    for entrance in entrances or [name]:
                        self._sockets[entrance] = await self._listen(entrance)
                else:
                    await self._publishers.pop(name).close()
                    os.unlink(self._file(name))
                    os.unlink(self._spool(name))

    async def close(self) -> None:
        await asyncio.gather(*(publisher.close() for publisher in self._publishers.values()))
        self._publishers.clear()

    # ---- files -----------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> str:
        return os.path.join(self._folder, name + _SUFFIX)

    def _spool(self, name: str) -> str:
        return os.path.join(self._folder, f"{name}.events")

    def _save(self, name: str, addresses: Addresses) -> None:
        temporary = self._file(name) + ".new"
        with open(temporary, "w") as file:
            json.dump(addresses._asdict(), file)
        os.rename(temporary, self._file(name))

    def _read(self, name: str) -> Addresses:
        with open(self._file(name)) as file:
            addresses = Addresses(**json.load(file))
        if not all(isinstance(address, str) for address in addresses) or name_of(addresses) != name:
            raise ValueError("not a registration")
        return addresses


def entrance_of(name: str, namespace: str) -> str:
    """The name of a containerd, and the namespace of calls that name none."""
    return f"{name}{_OF_NAMESPACE}{namespace}" if namespace else name


def split_entrance(entrance: str) -> tuple[str, str]:
    """The inverse."""
    name, _, namespace = entrance.partition(_OF_NAMESPACE)
    return name, namespace


def name_of(addresses: Addresses) -> str:
    """The name of the containerd that listens there."""
    return hashlib.sha256(f"{addresses.ttrpc}\n{addresses.grpc}".encode()).hexdigest()[:12]


def _check(addresses: Addresses) -> None:
    if not addresses.ttrpc and not addresses.grpc:
        raise InvalidArgument("neither a ttrpc nor a gRPC address of containerd is given")
    for address in addresses[:2]:
        if address and not socket_path(address).startswith("/"):
            raise InvalidArgument(f"address {address!r} of containerd is no absolute path")
    if any("\0" in address for address in addresses):
        raise InvalidArgument("an address of containerd has a null byte in it")
