"""The bus: numbers events, keeps the last ones for replay, wakes subscribers.

A subscriber has no queue of its own, only the number of the event it wants next; the ring is the one buffer, however
many subscribers there are and however slow. One that falls behind by more than the ring learns how many events it
missed. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from shimd.events.model import Event, Filter
from shimd.records import Record


class TaskEvent(Protocol):
    """What the bus needs of a message of ``containerd.events``."""

    container_id: str

    @property
    def DESCRIPTOR(self) -> Descriptor: ...

    def SerializeToString(self) -> bytes: ...


class Descriptor(Protocol):
    @property
    def full_name(self) -> str: ...


class Delivery(Record):
    """An event and how many events before it, wanted or not, are no longer kept."""

    event: Event
    missed: int


class EventBus:
    """Keeps the last ``keep`` events."""

    def __init__(self, keep: int) -> None:
        self._ring: deque[Event] = deque(maxlen=keep)
        self._next = 1
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[Event], None]] = []
        self._closed = False

    @property
    def last_sequence(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._next - 1

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` with each new event, in order; it misses none."""
        self._listeners.append(listener)

    def publish(self, namespace: str, topic: str, message: TaskEvent, *, origin: str = "") -> Event:
        event = Event(
            self._next,
            time.time_ns(),
            namespace,
            message.container_id,
            topic,
            message.DESCRIPTOR.full_name,
            message.SerializeToString(),
            origin,
        )
        self._next += 1
        self._ring.append(event)
        for listener in self._listeners:
            listener(event)
        self._wake()
        return event

    def close(self) -> None:
        """End every subscription once it has delivered what is kept."""
        self._closed = True
        self._wake()

    async def subscribe(self, wanted: Filter, *, since: int = 0, follow: bool = True) -> AsyncIterator[Delivery]:
        """Events that match ``wanted`` from number ``since`` on (0: new ones); without ``follow`` only kept ones."""
        position = since or self._next
        while True:
            missed = max(0, self._oldest - position)
            position += missed
            batch = self._from(position)
            for event in batch:
                position = event.sequence + 1
                if wanted.wants(event):
                    yield Delivery(event, missed)
                    missed = 0
            if position >= self._next:
                if self._closed or not follow:
                    return
                await self._wait()

    @property
    def _oldest(self) -> int:
        return self._next - len(self._ring)

    def _from(self, position: int) -> list[Event]:
        count = self._next - position
        ring = self._ring
        return [ring[index] for index in range(len(ring) - count, len(ring))] if count > 0 else []

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
