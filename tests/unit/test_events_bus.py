from __future__ import annotations

import asyncio

from shimd.api.containerd import task_events_pb2 as messages
from shimd.events.bus import Delivery, EventBus
from shimd.events.model import TASK_EXIT, TASK_START, Filter

EVERYTHING = Filter()


def _publish(bus: EventBus, count: int = 1, *, namespace: str = "n", container: str = "c") -> None:
    for _ in range(count):
        bus.publish(namespace, TASK_START, messages.TaskStart(container_id=container, pid=1))


async def _kept(bus: EventBus, wanted: Filter = EVERYTHING, since: int = 1) -> list[Delivery]:
    return [delivery async for delivery in bus.subscribe(wanted, since=since, follow=False)]


async def test_numbers_and_content() -> None:
    bus = EventBus(10)
    assert bus.last_sequence == 0
    event = bus.publish("n", TASK_EXIT, messages.TaskExit(container_id="c", exit_status=3))
    assert (event.sequence, event.topic, event.type_name) == (1, TASK_EXIT, "containerd.events.TaskExit")
    assert messages.TaskExit.FromString(event.payload).exit_status == 3
    assert bus.last_sequence == 1


async def test_replay() -> None:
    bus = EventBus(10)
    _publish(bus, 5)
    assert [d.event.sequence for d in await _kept(bus)] == [1, 2, 3, 4, 5]
    assert [d.event.sequence for d in await _kept(bus, since=4)] == [4, 5]
    assert await _kept(bus, since=6) == []
    assert await _kept(bus, since=100) == []


async def test_what_is_no_longer_kept_is_counted() -> None:
    bus = EventBus(3)
    _publish(bus, 10)
    assert [(d.event.sequence, d.missed) for d in await _kept(bus)] == [(8, 7), (9, 0), (10, 0)]
    assert [(d.event.sequence, d.missed) for d in await _kept(bus, since=9)] == [(9, 0), (10, 0)]


async def test_filter() -> None:
    bus = EventBus(10)
    _publish(bus, namespace="one", container="a")
    _publish(bus, namespace="two", container="b")
    bus.publish("two", TASK_EXIT, messages.TaskExit(container_id="b"))

    async def numbers(**fields: object) -> list[int]:
        return [d.event.sequence for d in await _kept(bus, Filter(**fields))]  # type: ignore[arg-type]

    assert await numbers(namespace="two") == [2, 3]
    assert await numbers(container_ids=frozenset("a")) == [1]
    assert await numbers(topics=("/tasks/exit",)) == [3]
    assert await numbers(topics=("/tasks/",)) == [1, 2, 3]
    assert await numbers(topics=("/tasks",)) == []


async def test_followers_get_new_events_in_order() -> None:
    bus = EventBus(100)
    _publish(bus, 2)

    async def follow(since: int) -> list[int]:
        return [d.event.sequence async for d in bus.subscribe(EVERYTHING, since=since)]

    old, new = asyncio.create_task(follow(1)), asyncio.create_task(follow(0))
    await asyncio.sleep(0)
    _publish(bus)
    await asyncio.sleep(0)
    _publish(bus, 2)
    bus.close()
    assert await old == [1, 2, 3, 4, 5]
    assert await new == [3, 4, 5]


async def test_slow_follower_learns_what_it_missed() -> None:
    bus = EventBus(2)
    subscription = bus.subscribe(EVERYTHING, since=1)
    _publish(bus)
    assert (await anext(subscription)).event.sequence == 1
    _publish(bus, 5)
    bus.close()
    assert [(d.event.sequence, d.missed) async for d in subscription] == [(5, 3), (6, 0)]


async def test_a_follower_that_leaves_is_forgotten() -> None:
    bus = EventBus(2)

    async def follow() -> None:
        async for _ in bus.subscribe(EVERYTHING):
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert not bus._waiters
    _publish(bus)
