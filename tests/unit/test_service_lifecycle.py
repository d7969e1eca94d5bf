"""The order of events and what becomes of calls that are given up, over a runtime that does as the test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from shimd.api.containerd.task_events_pb2 import TaskExit
from shimd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimeFailure
from shimd.events.bus import EventBus
from shimd.oci.read import read_process
from shimd.runtime.status import Status
from shimd.service import lifecycle as module
from shimd.service.announce import Announcer
from shimd.service.control import Control
from shimd.service.lifecycle import CreateRequest, ExecRequest, Lifecycle
from shimd.service.records import RUNNING, Container
from shimd.service.registry import Registry
from shimd.supervise.exits import Exit
from shimd.supervise.stdio import OpenStdio

NAMESPACE = "ns"


class State(NamedTuple):
    own_pid_namespace: bool = True
    service: Mapping[str, Any] = MappingProxyType({})


class Directory:
    """Of notes, which nobody reads here."""

    def write(self, name: str, data: bytes) -> None:
        pass


class Made:
    """What the runtime makes."""

    def __init__(self, state: State) -> None:
        self.pid = 100
        self.state = state
        self.timings: dict[str, float] = {}
        self.launched_pids = 100
        self.directory = Directory()

    def take_console(self) -> int:
        return -1

    def close(self) -> None:
        pass


class Exec(NamedTuple):
    pid: int
    console_fd: int
    timings: dict[str, float]


class FakeExits:
    """Delivers when the test says so."""

    def __init__(self) -> None:
        self.expected: dict[str, Callable[[Exit], None]] = {}

    def expect(self, name: str, callback: Callable[[Exit], None]) -> None:
        self.expected[name] = callback

    def unexpect(self, name: str) -> None:
        self.expected.pop(name, None)

    def end(self, name: str, code: int = 0) -> None:
        self.expected.pop(name)(Exit(name, 100, code << 8, 1, 0, 0, 0))


class FakeRuntime:
    """``during`` runs in the loop's thread while an operation is in a worker thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, exits: FakeExits) -> None:
        self.loop = loop
        self.exits = exits
        self.calls: list[str] = []
        self.during: dict[str, Callable[[], None]] = {}
        self.failing: dict[str, Exception] = {}
        self.state = State()
        self.derived = Status.STOPPED

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if action := self.during.pop(what, None):
            done = threading.Event()
            self.loop.call_soon_threadsafe(action)
            self.loop.call_soon_threadsafe(done.set)
            done.wait(10)
        if error := self.failing.pop(what, None):
            raise error

    def start(self, container: Any) -> None:
        self._do("start")

    def status(self, container: Any) -> Status:
        return self.derived

    def exec(self, container: Any, exec_id: str, process: Any, **_: Any) -> Exec:
        self._do("exec")
        return Exec(200, -1, {})

    def kill(self, container: Any, signal: int, *, everyone: bool = False) -> None:
        self._do("kill everyone" if everyone else "kill")

    def delete(self, container: Any, *, force: bool) -> tuple[str, ...]:
        self._do("delete")
        return ()

    def delete_exec(self, container: Any, process: Any) -> None:
        self._do("delete exec")


class Output:
    """Streams whose readers have taken all when the test says so."""

    def __init__(self, process: Any) -> None:
        process.streams = self
        self.is_drained = True
        self.taken: Callable[[], None]

    def when_read(self, readers: Any, over: Callable[[], None]) -> None:
        self.taken = over

    def close(self) -> None:
        pass


class World(NamedTuple):
    lifecycle: Lifecycle
    runtime: FakeRuntime
    exits: FakeExits
    bus: EventBus

    async def create(self, container_id: str = "c", *, gate: bool = True) -> Container:
        return await self.lifecycle.create(NAMESPACE, CreateRequest(container_id, "/bundle", gate=gate))

    async def running(self) -> Container:
        container = await self.create()
        await self.lifecycle.start(container.init)
        return container

    async def add_exec(self, container: Container, exec_id: str) -> Any:
        process = read_process(b'{"args": ["x"], "cwd": "/"}')
        return self.lifecycle.add_exec(container, ExecRequest(exec_id, process))

    def topics(self) -> list[str]:
        return [event.topic.removeprefix("/tasks/") for event in self.bus._ring]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    loop = asyncio.get_running_loop()
    exits = FakeExits()
    runtime = FakeRuntime(loop, exits)

    def make(self: Lifecycle, namespace: str, request: CreateRequest) -> Any:
        runtime._do("create")
        made: Any = Made(runtime.state)
        return module._Made(made, OpenStdio(terminal=False), None)

    monkeypatch.setattr(Lifecycle, "_make", make)
    monkeypatch.setattr(module, "open_stdio", lambda *_, **__: OpenStdio(terminal=False))
    bus = EventBus(100)
    fake_runtime: Any = runtime
    fake_exits: Any = exits
    nothing_held: Any = None
    with ThreadPoolExecutor(4) as executor:
        lifecycle = Lifecycle(fake_runtime, Registry(), Announcer(bus), fake_exits, nothing_held, executor, 0.1)
        yield World(lifecycle, runtime, exits, bus)
        lifecycle.close()


async def test_whole_life(world: World) -> None:
    container = await world.running()
    world.exits.end("ns/c", 3)
    ended = await world.lifecycle.delete(container.init)
    assert ended is not None
    assert ended.code == 3
    assert world.topics() == ["create", "start", "exit", "delete"]
    assert world.runtime.calls == ["create", "start", "delete"]
    assert len(world.lifecycle.registry) == 0


async def test_exit_during_start_is_told_after_it(world: World) -> None:
    container = await world.create()
    world.runtime.during["start"] = lambda: world.exits.end("ns/c")
    await world.lifecycle.start(container.init)
    assert container.init.exited.done()
    assert world.topics() == ["create", "start", "exit"]


async def test_exit_during_a_create_that_starts_is_told_last(world: World) -> None:
    world.runtime.during["create"] = lambda: world.exits.end("ns/c")
    await world.create(gate=False)
    assert world.topics() == ["create", "start", "exit"]


async def test_exit_of_an_exec_during_its_start_is_told_after_it(world: World) -> None:
    container = await world.running()
    process = await world.add_exec(container, "e")
    world.runtime.during["exec"] = lambda: world.exits.end("ns/c/e")
    await world.lifecycle.start(process)
    assert world.topics()[2:] == ["exec-added", "exec-started", "exit"]


async def test_exit_of_the_first_process_waits_for_those_of_execs(world: World) -> None:
    container = await world.running()
    for exec_id in ("e1", "e2"):
        await world.lifecycle.start(await world.add_exec(container, exec_id))
    world.exits.end("ns/c")
    assert not container.init.exited.done()
    world.exits.end("ns/c/e2")
    assert not container.init.exited.done()
    world.exits.end("ns/c/e1")
    assert container.init.exited.done()
    assert world.topics()[-3:] == ["exit"] * 3


async def test_exit_is_told_once_the_output_was_read(world: World) -> None:
    container = await world.running()
    output: Any = Output(container.init)
    world.exits.end("ns/c", 3)
    assert not container.init.exited.done()
    assert world.topics() == ["create", "start"]
    output.taken()
    assert container.init.exited.result().code == 3
    assert world.topics() == ["create", "start", "exit"]


async def test_outputs_are_waited_for_together_and_exits_told_in_order(world: World) -> None:
    container = await world.running()
    process = await world.add_exec(container, "e")
    await world.lifecycle.start(process)
    outputs: list[Any] = [Output(each) for each in (container.init, process)]
    world.exits.end("ns/c")
    world.exits.end("ns/c/e")
    outputs[0].taken()
    assert not container.init.exited.done()
    outputs[1].taken()
    exits = [event.payload for event in world.bus._ring if event.topic == "/tasks/exit"]
    assert [TaskExit.FromString(payload).id for payload in exits] == ["e", "c"]


async def test_exit_is_told_once_when_it_was_started_too_late(world: World) -> None:
    container = await world.create()
    output: Any = Output(container.init)
    world.exits.end("ns/c")
    world.runtime.failing["start"] = FailedPrecondition("it is dead")
    with pytest.raises(FailedPrecondition):
        await world.lifecycle.start(container.init)
    output.taken()
    assert world.topics() == ["create", "exit"]


async def test_start_of_what_a_former_daemon_has_started(world: World) -> None:
    """It was killed before it could say so."""
    container = await world.create()
    world.runtime.failing["start"] = FailedPrecondition("it runs")
    world.runtime.derived = Status.RUNNING
    with pytest.raises(FailedPrecondition):
        await world.lifecycle.start(container.init)
    assert container.init.status == RUNNING
    assert world.topics() == ["create", "start"]


async def test_exit_of_the_first_process_waits_for_an_exec_that_is_being_started(world: World) -> None:
    container = await world.running()
    process = await world.add_exec(container, "e")
    world.runtime.during["exec"] = lambda: world.exits.end("ns/c")
    world.runtime.failing["exec"] = RuntimeFailure("it died")
    with pytest.raises(RuntimeFailure):
        await world.lifecycle.start(process)
    assert process.exit is not None
    assert process.exit.code == 255
    assert container.init.exited.done()
    assert world.topics()[-1] == "exit"


async def test_shared_pid_namespace_is_cleared_before_the_exit_is_told(world: World) -> None:
    world.runtime.state = State(own_pid_namespace=False)
    container = await world.running()
    told: list[bool] = []
    world.runtime.during["kill everyone"] = lambda: told.append(container.init.exited.done())
    world.exits.end("ns/c")
    await container.init.exited
    assert told == [False]


async def test_failed_create_leaves_nothing(world: World) -> None:
    world.runtime.failing["create"] = RuntimeFailure("no")
    with pytest.raises(RuntimeFailure):
        await world.create()
    assert world.exits.expected == {}
    assert world.topics() == []
    await world.create()


async def test_of_two_creates_one_wins(world: World) -> None:
    first, second = await asyncio.gather(world.create(), world.create(), return_exceptions=True)
    assert isinstance(first, Container)
    assert isinstance(second, AlreadyExists)


async def test_create_whose_caller_goes_is_undone(world: World) -> None:
    task = asyncio.ensure_future(world.create())
    world.runtime.during["create"] = lambda: (task.cancel(), None)[1]
    world.runtime.during["kill"] = lambda: world.exits.end("ns/c", 137)
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.lifecycle.finish()
    assert world.topics() == ["create", "exit", "delete"]
    assert len(world.lifecycle.registry) == 0


async def test_start_goes_on_without_its_caller(world: World) -> None:
    container = await world.create()
    task = asyncio.ensure_future(world.lifecycle.start(container.init))
    world.runtime.during["start"] = lambda: (task.cancel(), None)[1]
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.lifecycle.finish()
    assert world.topics() == ["create", "start"]


async def test_failed_start_can_be_deleted(world: World) -> None:
    container = await world.create()
    world.runtime.failing["start"] = RuntimeFailure("exec format error")
    world.runtime.during["start"] = lambda: world.exits.end("ns/c", 1)
    with pytest.raises(RuntimeFailure, match="exec format error"):
        await world.lifecycle.start(container.init)
    assert world.topics() == ["create", "exit"]
    await world.lifecycle.delete(container.init)


async def test_delete_in_the_wrong_state(world: World) -> None:
    container = await world.running()
    with pytest.raises(FailedPrecondition):
        await world.lifecycle.delete(container.init)
    world.exits.end("ns/c")
    await world.lifecycle.delete(container.init)
    with pytest.raises(NotFound):
        await world.lifecycle.delete(container.init)


async def test_delete_that_fails_can_be_repeated(world: World) -> None:
    container = await world.running()
    world.exits.end("ns/c")
    world.runtime.failing["delete"] = RuntimeFailure("busy")
    with pytest.raises(RuntimeFailure):
        await world.lifecycle.delete(container.init)
    assert world.lifecycle.registry.find(NAMESPACE, "c") is container
    await world.lifecycle.delete(container.init)
    assert world.topics()[-1] == "delete"


async def test_remove_of_one_that_ends_by_itself_at_this_moment(world: World) -> None:
    container = await world.running()
    world.runtime.during["kill"] = lambda: world.exits.end("ns/c", 3)
    world.runtime.failing["kill"] = NotFound("container not running")
    await world.lifecycle.remove(container)
    assert world.topics() == ["create", "start", "exit", "delete"]


async def test_delete_comes_after_the_answer_to_a_signal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    container = await world.running()
    sent, answer = asyncio.Event(), threading.Event()

    def kill(*_: object, **__: object) -> None:
        world.runtime.loop.call_soon_threadsafe(sent.set)
        assert answer.wait(10)

    monkeypatch.setattr(world.runtime, "kill", kill)
    control = Control(world.lifecycle, Announcer(world.bus))
    killing = asyncio.create_task(control.kill(container.init, 9, everyone=False))
    await sent.wait()
    world.exits.end("ns/c")
    deleting = asyncio.create_task(world.lifecycle.delete(container.init))
    for _ in range(10):
        await asyncio.sleep(0)
    assert "delete" not in world.runtime.calls
    answer.set()
    await asyncio.wait((killing, deleting), return_when=asyncio.FIRST_COMPLETED)
    assert killing.done()
    await deleting


async def test_execs_are_forgotten_with_their_container(world: World) -> None:
    container = await world.running()
    await world.lifecycle.start(await world.add_exec(container, "e"))
    world.exits.end("ns/c")
    world.exits.end("ns/c/e")
    await world.lifecycle.delete(container.init)
    assert world.runtime.calls[-2:] == ["delete exec", "delete"]


async def test_exec_that_is_deleted_while_its_container_is(world: World) -> None:
    container = await world.running()
    for name in ("e1", "e2"):
        await world.lifecycle.start(await world.add_exec(container, name))
        world.exits.end(f"ns/c/{name}")
    world.exits.end("ns/c")
    deleting: list[asyncio.Future[Any]] = []
    world.runtime.during["delete exec"] = lambda: deleting.append(
        asyncio.ensure_future(world.lifecycle.delete(container.execs["e2"]))
    )
    await world.lifecycle.delete(container.init)
    with pytest.raises(NotFound, match="process does not exist e2"):
        await deleting[0]
    assert world.runtime.calls.count("delete exec") == 2


@pytest.mark.parametrize(("container_id", "bundle"), [("", "/b"), ("../x", "/b"), ("x", "b"), ("x", "")])
async def test_malformed_requests(world: World, container_id: str, bundle: str) -> None:
    with pytest.raises(InvalidArgument):
        await world.lifecycle.create(NAMESPACE, CreateRequest(container_id, bundle))
