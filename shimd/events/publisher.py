"""Events of containers to the containerds that they belong to, in order and without loss.

Each containerd has one queue and at most one event under way. One that cannot be handed over stays at the head and is
tried again after a growing pause, so a containerd that is stopped and started gets everything, in order; what was
handed over when the connection broke may come twice. The queue is on disk, too: a daemon that is stopped goes on where
it was. Only an event that containerd itself refuses, several times, is given up, and what comes when the queue is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from shimd.api.containerd import forward_pb2
from shimd.events.forward import Addresses, Forwarder
from shimd.events.model import Event
from shimd.events.spool import Spool
from shimd.rpc.status import CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE, StatusError

_FIRST_PAUSE = 0.02  # seconds
_LONGEST_PAUSE = 1.0
_MAX_REFUSALS = 5
_GRACE = 1.0  # seconds to hand over the rest at the end

# All others are containerd's opinion of the event itself.
_TRANSIENT = (CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE)

_log = logging.getLogger(__name__)


class Publisher:
    """Forwards to one containerd, from its making until ``close``; owns ``spool``."""

    def __init__(self, addresses: Addresses, spool: Spool) -> None:
        self.addresses = addresses
        self._spool = spool
        self._forwarder = Forwarder(addresses)
        self._full = False
        self._failing = False
        self._closing = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def is_idle(self) -> bool:
        return not self._spool

    def publish(self, event: Event) -> None:
        if self._spool.put(forward_request(event)):
            self._full = False
        elif not self._full:
            self._full = True
            _log.error("too many events wait for containerd at %s: what comes now is lost", self._name)
        self._wake.set()

    async def use(self, addresses: Addresses) -> None:
        """The same containerd can be reached in another way."""
        former, self._forwarder = self._forwarder, Forwarder(addresses)
        self.addresses = addresses
        await former.close()

    async def close(self) -> None:
        """What cannot be handed over in a moment stays on disk."""
        self._closing = True
        self._wake.set()
        if not self._failing:
            await asyncio.wait({self._task}, timeout=_GRACE)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._forwarder.close()
        self._spool.close()

    @property
    def _name(self) -> str:
        return self.addresses.ttrpc or self.addresses.grpc or self.addresses.binary

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            while self._spool:
                await self._hand_over(self._spool.first())
                self._spool.take()
            if self._closing:
                return
            await self._wake.wait()

    async def _hand_over(self, request: bytes) -> None:
        """Returns when containerd has it, or refuses it for good."""
        pause = _FIRST_PAUSE
        refusals = 0
        while True:
            try:
                await self._forwarder.forward(request)
                self._failing = False
                return
            except Exception as error:  # noqa: BLE001  one that nobody foresaw must not hold up all that follow
                if not self._failing:
                    _log.warning("an event cannot be handed to containerd at %s: %r", self._name, error)
                self._failing = True
                if not isinstance(error, StatusError) or error.code not in _TRANSIENT:
                    refusals += 1
                if refusals == _MAX_REFUSALS:
                    _log.error("containerd at %s refuses an event, which is lost: %r", self._name, error)
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def forward_request(event: Event) -> bytes:
    seconds, nanos = divmod(event.time_ns, 1_000_000_000)
    return forward_pb2.ForwardRequest(
        envelope=forward_pb2.Envelope(
            timestamp=Timestamp(seconds=seconds, nanos=nanos),
            namespace=event.namespace,
            topic=event.topic,
            event=Any(type_url=event.type_name, value=event.payload),
        )
    ).SerializeToString()
