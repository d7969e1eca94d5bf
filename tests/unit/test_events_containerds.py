"""The registrations of containerds, and that they are found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shimd.errors import InvalidArgument
from shimd.events.containerds import Containerds, Sockets, name_of
from shimd.events.forward import Addresses
from shimd.events.model import Event

ONE = Addresses("/run/one/c.sock.ttrpc", "/run/one/c.sock", "/usr/bin/containerd")
OTHER = Addresses("unix:///run/other/c.sock.ttrpc", "unix:///run/other/c.sock", "")


LOCK = 7


class Listening:
    def __init__(self) -> None:
        self.names: list[str] = []

    async def __call__(self, name: str) -> Sockets:
        await asyncio.sleep(0)
        self.names.append(name)
        return Sockets(f"/state/{name}.ttrpc.sock", f"/state/{name}.sock")


@contextlib.asynccontextmanager
async def containerds(folder: Path, used: tuple[str, ...] = ()) -> AsyncIterator[tuple[Containerds, Listening]]:
    """As the daemon makes them."""
    listening = Listening()
    made = Containerds(str(folder), listening, LOCK)
    made.load()
    await made.resume(used)
    yield made, listening
    await made.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def event(origin: str) -> Event:
    return Event(1, 1, "n", "c", "/tasks/oom", "containerd.events.TaskOOM", b"", origin)


async def test_registration(tmp_path: Path) -> None:
    async with containerds(tmp_path) as (made, listening):
        name = name_of(ONE)
        assert await made.register(ONE) == Sockets(f"/state/{name}.ttrpc.sock", f"/state/{name}.sock")
        assert listening.names == [name]
        assert files(tmp_path) == [f"{name}.events", f"{name}.json"]


async def test_again_and_at_once(tmp_path: Path) -> None:
    async with containerds(tmp_path) as (made, listening):
        found = await asyncio.gather(*[made.register(ONE) for _ in range(10)], made.register(OTHER))
        assert len(set(found)) == 2
        assert sorted(listening.names) == sorted([name_of(ONE), name_of(OTHER)])


async def test_another_binary_is_the_same_containerd(tmp_path: Path) -> None:
    async with containerds(tmp_path) as (made, listening):
        before = await made.register(ONE)
        assert await made.register(ONE._replace(binary="/usr/local/bin/containerd")) == before
        assert listening.names == [name_of(ONE)]
        assert json.loads((tmp_path / f"{name_of(ONE)}.json").read_text())["binary"] == "/usr/local/bin/containerd"


@pytest.mark.parametrize(
    "addresses",
    [
        Addresses("", "", "/bin/containerd"),
        Addresses("relative", "", ""),
        Addresses("", "tcp://127.0.0.1:1", ""),
        Addresses("/a\0b", "", ""),
        Addresses("/a", "", "/b\0c"),
    ],
)
async def test_what_is_refused(tmp_path: Path, addresses: Addresses) -> None:
    async with containerds(tmp_path) as (made, listening):
        with pytest.raises(InvalidArgument):
            await made.register(addresses)
        assert listening.names == []
        assert files(tmp_path) == []


async def test_those_with_containers_are_found_again(tmp_path: Path) -> None:
    async with containerds(tmp_path) as (made, _):
        await made.register(ONE)
        await made.register(OTHER)
    async with containerds(tmp_path, used=(name_of(ONE), "unknown")) as (made, listening):
        assert listening.names == [name_of(ONE)]
        assert files(tmp_path) == [f"{name_of(ONE)}.events", f"{name_of(ONE)}.json"]
        await made.register(ONE)
        await made.register(OTHER)
        assert sorted(listening.names) == sorted([name_of(ONE), name_of(OTHER)])


async def test_those_with_events_that_wait_are_found_again(tmp_path: Path) -> None:
    async with containerds(tmp_path) as (made, _):
        await made.register(ONE)
        made.publish(event(name_of(ONE)))
        made.publish(event("unknown"))
        made.publish(event(""))
        await asyncio.sleep(0.01)
    async with containerds(tmp_path) as (_, listening):
        assert listening.names == [name_of(ONE)]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"ttrpc": 1, "grpc": "", "binary": ""}', json.dumps(OTHER._asdict()), '{"a": "b"}']
)
async def test_damaged_files_are_forgotten(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{name_of(ONE)}.json").write_text(content)
    async with containerds(tmp_path, used=(name_of(ONE),)) as (_, listening):
        assert listening.names == []
    assert files(tmp_path) == []
    assert "is forgotten" in caplog.text
