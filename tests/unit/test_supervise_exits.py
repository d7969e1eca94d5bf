"""Exits from a keeper (here a socket that the test holds), and without one through pidfds of real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from shimd.init.packets import send_message
from shimd.keeper.client import KeeperClient
from shimd.keeper.protocol import Exit
from shimd.supervise import exits as module
from shimd.supervise.exits import UNKNOWN_STATUS, Exits
from shimd.supervise.oom import OomWatcher
from tests.support.loops import on_both_loops

SECONDS = 10.0


class Keeper:
    """The subscription of a keeper that says what the test says."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours: socket.socket | None = ours
        ours.setblocking(False)  # noqa: FBT003 (positional-only)

    def subscribe(self) -> socket.socket:
        assert self._ours is not None
        ours, self._ours = self._ours, None
        return ours

    def say(self, ended: Exit) -> None:
        send_message(self._theirs, ("exit", *ended))

    def close(self) -> None:
        self._theirs.close()
        if self._ours is not None:
            self._ours.close()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    one = Keeper()
    yield one
    one.close()


def ended(name: str, status: int = 0) -> Exit:
    return Exit(name, 4711, status, 1, 2, 3, 4)


def exits_of(keeper: Keeper, lost: asyncio.Event | None = None) -> Exits:
    return Exits(cast(KeeperClient, keeper), (lost or asyncio.Event()).set)


class Inbox(list[Exit]):
    """What was delivered, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def put(self, one: Exit) -> None:
        self.append(one)
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self) < count:
                self._more.clear()
                await self._more.wait()


@on_both_loops
async def test_exits_reach_who_expects_them_once(keeper: Keeper) -> None:
    exits = exits_of(keeper)
    one = Inbox()
    two = Inbox()
    exits.expect("ns/one", one.put)
    exits.expect("ns/two", two.put)
    keeper.say(ended("ns/one", 7 << 8))  # before the subscription: the keeper remembers
    exits.subscribe()
    for name in ("ns/unknown", "ns/two", "ns/one"):
        keeper.say(ended(name))
    await two.until(1)
    assert [exit_.code for exit_ in one] == [7]
    exits.expect("ns/one", one.put)
    exits.unexpect("ns/one")
    keeper.say(ended("ns/one"))
    exits.expect("ns/last", two.put)
    keeper.say(ended("ns/last"))
    await two.until(2)
    assert len(one) == 1
    exits.close()
    exits.close()


@on_both_loops
async def test_loss_of_the_keeper_is_told_after_its_last_words(keeper: Keeper) -> None:
    lost = asyncio.Event()
    exits = exits_of(keeper, lost)
    found = Inbox()
    exits.expect("ns/one", found.put)
    exits.subscribe()
    keeper.say(ended("ns/one"))
    keeper.close()
    await asyncio.wait_for(lost.wait(), SECONDS)
    assert len(found) == 1
    exits.close()


def run_child(status: int) -> tuple[int, int, int]:
    """(pid, pidfd, descriptor to close for it to end)."""
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(hold, 1)
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)
    os.close(hold)
    return pid, os.pidfd_open(pid), release


@pytest.mark.skipif(tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15), reason="needs Linux 6.15")
@pytest.mark.parametrize(("status", "code"), [(3, 3), (-signal.SIGKILL, 137)])
@on_both_loops
async def test_without_keeper_the_pidfd_tells_how(keeper: Keeper, status: int, code: int) -> None:
    exits = exits_of(keeper)
    found = Inbox()
    pid, pidfd, release = run_child(status)
    exits.expect("ns/one", found.put)
    exits.watch("ns/one", pid, pidfd, "/missing")
    exits.watch("ns/one", pid, pidfd, "/missing")  # a second keeper was lost
    os.close(pidfd)
    os.close(release)
    await asyncio.sleep(0.01)  # it may be a zombie for a while
    os.waitpid(pid, 0)
    await found.until(1)
    assert (found[0].name, found[0].pid, found[0].code) == ("ns/one", pid, code)
    exits.close()


@on_both_loops
async def test_without_keeper_its_record_is_believed_first(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    exits = exits_of(keeper)
    found = Inbox()
    pid, pidfd, release = run_child(0)
    monkeypatch.setattr(module, "read_exit_file", lambda path: ended("other", 9 << 8) if path == "/record" else None)
    exits.expect("ns/one", found.put)
    exits.watch("ns/one", pid, pidfd, "/record")
    os.close(pidfd)
    os.close(release)
    await found.until(1)
    assert (found[0].name, found[0].code) == ("ns/one", 9)
    os.waitpid(pid, 0)
    exits.close()


@on_both_loops
async def test_unknown_status_is_255(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pidfd_exit_status", lambda _: None)
    monkeypatch.setattr(module, "_REAP_INTERVAL", 0.001)
    exits = exits_of(keeper)
    found = Inbox()
    pid, pidfd, release = run_child(0)
    exits.expect("ns/one", found.put)
    exits.watch("ns/one", pid, pidfd, "/missing")
    os.close(pidfd)
    os.close(release)
    await found.until(1)
    assert (found[0].wait_status, found[0].code) == (UNKNOWN_STATUS, 255)
    os.waitpid(pid, 0)
    exits.close()


@on_both_loops
async def test_closing_forgets_the_watched(keeper: Keeper) -> None:
    exits = exits_of(keeper)
    found = Inbox()
    pid, pidfd, release = run_child(0)
    exits.expect("ns/one", found.put)
    exits.watch("ns/one", pid, pidfd, "/missing")
    exits.close()
    os.close(pidfd)
    os.close(release)
    os.waitpid(pid, 0)
    await asyncio.sleep(0.01)
    assert found == []


class FakeWatch:
    """An eventfd that counts kills, as the cgroup's would."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.suspect = False

    def kill(self, count: int) -> None:
        os.eventfd_write(self._fd, count)

    def fileno(self) -> int:
        return self._fd

    def consume(self) -> int:
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def is_suspect(self) -> bool:
        return self.suspect

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@on_both_loops
async def test_oom_kills_are_told_once_and_before_what_asks() -> None:
    watch = FakeWatch()
    told = asyncio.Queue[None]()
    watcher = OomWatcher(watch, lambda: told.put_nowait(None))
    watch.kill(3)
    await asyncio.wait_for(told.get(), SECONDS)
    watch.kill(1)
    watcher.check()
    assert told.qsize() == 1
    watcher.check(by_kill=True)
    await asyncio.sleep(0.01)
    assert told.qsize() == 1
    watch.suspect = True
    watcher.check()
    assert told.qsize() == 1
    watcher.check(by_kill=True)
    assert told.qsize() == 2
    watcher.close()
    watcher.close()
    watcher.check()
