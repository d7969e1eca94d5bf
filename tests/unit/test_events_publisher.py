"""Events on their way to a containerd that is a process of its own, and misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import task_events_pb2 as messages
from shimd.events import forward, publisher
from shimd.events.forward import Addresses
from shimd.events.model import Event
from shimd.events.publisher import Publisher
from shimd.events.spool import Spool
from tests.support.fake_containerd import FakeContainerd
from tests.support.loops import on_both_loops

SECONDS = 20.0
INVALID_ARGUMENT, UNAVAILABLE = 3, 14


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[FakeContainerd]:
    with FakeContainerd(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def publishing(containerd: FakeContainerd) -> AsyncIterator[Publisher]:
    spool = Spool(str(containerd.record) + ".spool")
    publisher = Publisher(Addresses(containerd.socket, "", ""), spool)
    try:
        yield publisher
    finally:
        await publisher.close()


def exit_event(number: int) -> Event:
    message = messages.TaskExit(container_id=f"c{number}", id=f"c{number}", pid=number, exit_status=number % 256)
    name = message.DESCRIPTOR.full_name
    return Event(number, 10**18 + number, "n", message.container_id, "/tasks/exit", name, message.SerializeToString())


async def recorded(containerd: FakeContainerd, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(SECONDS):
        while len(events := containerd.events()) < count:
            await asyncio.sleep(0.005)
    return events


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["message"]["pid"] for event in events]


@on_both_loops
async def test_what_arrives(containerd: FakeContainerd) -> None:
    containerd.start()
    async with publishing(containerd) as running:
        running.publish(exit_event(7))
        [event] = await recorded(containerd, 1)
        assert event == {
            "namespace": "n",
            "topic": "/tasks/exit",
            "type": "containerd.events.TaskExit",
            "timestamp": 10**18 + 7,
            "message": {"container_id": "c7", "id": "c7", "pid": 7, "exit_status": 7},
            "waiting": False,
        }


@on_both_loops
async def test_in_order_and_one_at_a_time(containerd: FakeContainerd) -> None:
    containerd.start()
    async with publishing(containerd) as running:
        for number in range(1, 201):
            running.publish(exit_event(number))
        events = await recorded(containerd, 200)
        assert numbers(events) == list(range(1, 201))
        assert not any(event["waiting"] for event in events)


@pytest.mark.parametrize(
    "behaviour", ["hangup", "rubbish", "refuse:14", "refuse:8", "refuse:4", "refuse:1", "refuse:2", "refuse:13"]
)
@on_both_loops
async def test_failures_are_tried_again_at_the_head(containerd: FakeContainerd, behaviour: str) -> None:
    containerd.start("ok", behaviour, behaviour, "ok", behaviour, "ok")
    async with publishing(containerd) as running:
        for number in range(1, 6):
            running.publish(exit_event(number))
        assert numbers(await recorded(containerd, 5)) == [1, 2, 3, 4, 5]


@on_both_loops
async def test_event_whose_answer_is_lost_comes_twice_but_in_order(containerd: FakeContainerd) -> None:
    containerd.start("ok", "lost", "ok")
    async with publishing(containerd) as running:
        for number in range(1, 4):
            running.publish(exit_event(number))
        assert numbers(await recorded(containerd, 4)) == [1, 2, 2, 3]


@on_both_loops
async def test_containerd_that_never_answers_is_given_up_after_a_time(
    containerd: FakeContainerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "TIMEOUT", 0.1)
    containerd.start("silent", "ok")
    async with publishing(containerd) as running:
        running.publish(exit_event(1))
        running.publish(exit_event(2))
        assert numbers(await recorded(containerd, 2)) == [1, 2]


@on_both_loops
async def test_restart_of_containerd(containerd: FakeContainerd) -> None:
    containerd.start("ok", "ok", "exit")
    async with publishing(containerd) as running:
        for number in range(1, 51):
            running.publish(exit_event(number))
        await asyncio.to_thread(containerd.await_exit)
        for number in range(51, 101):
            running.publish(exit_event(number))
        containerd.start()
        assert numbers(await recorded(containerd, 100)) == list(range(1, 101))


@on_both_loops
async def test_containerd_that_comes_late(containerd: FakeContainerd) -> None:
    async with publishing(containerd) as running:
        running.publish(exit_event(1))
        await asyncio.sleep(0.1)
        containerd.start()
        assert numbers(await recorded(containerd, 1)) == [1]


@on_both_loops
async def test_event_that_containerd_refuses_does_not_hold_up_the_others(
    containerd: FakeContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    containerd.start("ok", *[f"refuse:{INVALID_ARGUMENT}"] * 5, "ok")
    async with publishing(containerd) as running:
        for number in range(1, 5):
            running.publish(exit_event(number))
        assert numbers(await recorded(containerd, 3)) == [1, 3, 4]
    assert "refuses an event, which is lost" in caplog.text


@on_both_loops
async def test_next_daemon_goes_on(containerd: FakeContainerd) -> None:
    async with publishing(containerd) as running:
        for number in range(1, 11):
            running.publish(exit_event(number))
        await asyncio.sleep(0.05)
        assert not running.is_idle
    containerd.start()
    async with publishing(containerd) as running:
        running.publish(exit_event(11))
        assert numbers(await recorded(containerd, 11)) == list(range(1, 12))
    async with publishing(containerd) as running:
        assert running.is_idle


@on_both_loops
async def test_end_hands_over_what_is_there(containerd: FakeContainerd) -> None:
    containerd.start()
    async with publishing(containerd) as running:
        for number in range(1, 101):
            running.publish(exit_event(number))
    assert numbers(containerd.events()) == list(range(1, 101))


@on_both_loops
async def test_end_does_not_wait_for_a_containerd_that_is_away(containerd: FakeContainerd) -> None:
    loop = asyncio.get_running_loop()
    async with publishing(containerd) as running:
        running.publish(exit_event(1))
        await asyncio.sleep(0.05)
        begin = loop.time()
    assert loop.time() - begin < 0.5


@on_both_loops
async def test_full_queue(
    containerd: FakeContainerd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was promised first is kept; the loss is reported once."""
    monkeypatch.setattr("shimd.events.spool.LIMIT", 1000)
    async with publishing(containerd) as running:
        for number in range(1, 101):
            running.publish(exit_event(number))
        containerd.start()
        assert numbers(await recorded(containerd, 5))[:5] == [1, 2, 3, 4, 5]
        async with asyncio.timeout(SECONDS):
            while not running.is_idle:
                await asyncio.sleep(0.005)
        running.publish(exit_event(200))
        assert numbers(await recorded(containerd, len(containerd.events()) + 1))[-1] == 200
    assert caplog.text.count("what comes now is lost") == 1


@on_both_loops
async def test_bug_in_the_way_is_survived(containerd: FakeContainerd, monkeypatch: pytest.MonkeyPatch) -> None:
    real = forward.Forwarder.forward
    calls = 0

    async def broken(self: forward.Forwarder, request: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ZeroDivisionError
        await real(self, request)

    monkeypatch.setattr(forward.Forwarder, "forward", broken)
    containerd.start()
    async with publishing(containerd) as running:
        running.publish(exit_event(1))
        assert numbers(await recorded(containerd, 1)) == [1]
