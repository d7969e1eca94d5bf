"""The life of containers in the daemon: create, start, exec, exit, delete, and the events in the order clients rely on.

- Work that blocks runs in worker threads, one call for each operation; all records belong to the event loop.
- An operation, once begun, runs to its end even when its caller goes away: a half-made container helps nobody. A
  container whose creator has gone is deleted again.
- A start event comes before the exit event even when the process is dead by then; what follows an exit is in
  endings.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

from shimd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimeFailure
from shimd.oci.model import Process as ProcessSpec
from shimd.records import Record
from shimd.rpc.identifiers import check_identifier
from shimd.runtime import notes
from shimd.runtime.bundle import read_config
from shimd.runtime.container import Runtime
from shimd.runtime.model import Container as RuntimeContainer
from shimd.runtime.model import ExecOptions, ExecProcess, Stdio, launch_name
from shimd.runtime.pod import PodFiles
from shimd.runtime.rootfs import RootfsMount
from shimd.runtime.status import Status
from shimd.service import convert
from shimd.service.announce import Announcer
from shimd.service.endings import SIGKILL, Endings, write_note
from shimd.service.options import Options, create_options
from shimd.service.records import CREATED, RUNNING, STOPPED, Container, Process, StdioPaths, status_word
from shimd.service.registry import Registry
from shimd.supervise import held
from shimd.supervise.exits import Exit, Exits
from shimd.supervise.held import HeldStreams, TakenBack
from shimd.supervise.logger import Whose
from shimd.supervise.oom import OomWatcher, Watch
from shimd.supervise.stdio import ATTACH, OpenStdio, open_stdio
from shimd.supervise.streams import Streams

T = TypeVar("T")

_START_FAILED = 255  # the exit status of an exec that could not be started, as containerd's shims report it

_log = logging.getLogger(__name__)


class CreateRequest(Record):
    """``config`` replaces the bundle's config.json; ``terminal`` must then agree with it (None: whatever it says).
    ``followed``: the caller attaches as soon as it has the container, and misses nothing.
    """

    id: str
    bundle: str
    config: bytes | None = None
    rootfs: tuple[RootfsMount, ...] = ()
    stdio: StdioPaths = StdioPaths()
    terminal: bool | None = None
    options: Options = Options()
    gate: bool = True  # wait for Start; without it, the program runs when Create is done
    origin: str = ""  # see Call
    followed: bool = False
    pod: PodFiles | None = None  # of a sandbox; see CreateOptions


class ExecRequest(Record):
    exec_id: str
    process: ProcessSpec
    stdio: StdioPaths = StdioPaths()
    followed: bool = False  # see CreateRequest


class FoundProcess(Record):
    """``told``: the exit that a former daemon announced; ``ended``: how it ended, None while it lives; ``streams`` as
    far as the keeper held them.
    """

    told: Exit | None
    ended: Exit | None
    streams: TakenBack | None


class Found(Record):
    """A container of a former daemon."""

    runtime: RuntimeContainer
    status: Status
    init: FoundProcess
    execs: tuple[tuple[notes.ExecNote, ExecProcess, FoundProcess], ...]
    oom_watch: Watch | None  # of one that lives


class _Made(Record):
    """What a worker thread hands to the loop."""

    runtime: RuntimeContainer
    opened: OpenStdio
    oom_watch: Watch | None


class Lifecycle:
    """One for the daemon. ``drain_seconds``: how long Delete waits for output to be taken."""

    def __init__(
        self,
        runtime: Runtime,
        registry: Registry,
        announce: Announcer,
        exits: Exits,
        held_streams: HeldStreams,
        executor: Executor,
        drain_seconds: float,
    ) -> None:
        self.runtime = runtime
        self.registry = registry
        self._announce = announce
        self._exits = exits
        self._endings = Endings(runtime, announce, self.in_thread, self.in_background)
        self._held = held_streams
        self._executor = executor
        self._drain_seconds = drain_seconds
        self._loop = asyncio.get_running_loop()
        self._operations: set[asyncio.Task[Any]] = set()

    def in_thread(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run something that blocks."""
        return self._loop.run_in_executor(self._executor, function, *args)

    def close(self) -> None:
        """Let go of everything that is ours; containers and their files stay."""
        for container in self.registry.all():
            self._release(container)
            container.runtime.close()
        self._endings.close()

    async def finish(self) -> None:
        """Wait for the operations that are under way."""
        while self._operations:
            await asyncio.wait(self._operations)

    async def to_the_end(self, operation: Coroutine[Any, Any, T]) -> T:
        """Await ``operation``, which goes on when we are cancelled."""
        return await asyncio.shield(self._begin(operation))

    def in_background(self, operation: Coroutine[Any, Any, None], what: str, container: Container) -> None:
        """Run what nobody waits for; a failure is logged."""
        self._begin(operation).add_done_callback(partial(_log_failure, what, container.fields))

    def _begin(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(operation)
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        return task

    # ---- create ----------------------------------------------------------------------------------------------------

    async def create(self, namespace: str, request: CreateRequest) -> Container:
        """Raises AlreadyExists, InvalidArgument (InvalidSpec), RuntimeFailure; then nothing is left."""
        check_identifier(request.id, kind="container id")
        if not request.bundle.startswith("/"):
            raise InvalidArgument(f"bundle {request.bundle!r} is not an absolute path")
        task = self._begin(self._create(namespace, request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._undo_create)
            raise

    def _undo_create(self, task: asyncio.Task[Container]) -> None:
        if not task.cancelled() and task.exception() is None:
            container = task.result()
            self.in_background(self.remove(container), "deleting a container whose creator is gone", container)

    async def _create(self, namespace: str, request: CreateRequest) -> Container:
        with self.registry.reserved(namespace, request.id):
            container = Container(namespace, request.id, request.bundle, request.stdio)
            container.rootfs = request.rootfs
            container.init.followed = request.followed
            name = launch_name(namespace, request.id)
            self._exits.expect(name, partial(self._endings.on_exit, container.init))
            container.init.starting = True
            try:
                made = await self.in_thread(self._make, namespace, request)
            except BaseException:
                self._exits.unexpect(name)
                raise
            self._adopt(container, made)
            self.registry.add(container)
        self._announce.created(container)
        if not request.gate:
            container.init.set_started(made.runtime.pid)
            self._announce.started(container.init)
        self._started(container.init)
        return container

    def _make(self, namespace: str, request: CreateRequest) -> _Made:
        """In a worker thread: everything of Create that blocks."""
        config = read_config(request.bundle, self.runtime.env.host, request.config)
        if request.pod is None:
            config = self.runtime.in_pod(namespace, config)
        terminal = config.spec.process.terminal
        if request.terminal is not None and request.terminal != terminal:
            raise InvalidArgument(f"terminal is {request.terminal} in the request and {terminal} in config.json")
        options = request.options
        name = launch_name(namespace, request.id)
        opened = open_stdio(
            *request.stdio,
            terminal=terminal,
            uid=options.io_uid,
            gid=options.io_gid,
            whose=Whose(namespace, request.id),
        )
        try:
            runtime = self.runtime.create(
                request.id,
                request.bundle,
                namespace=namespace,
                config=config.data,
                stdio=Stdio(*opened.ends, paths=request.stdio),
                options=create_options(options, gate=request.gate)._replace(
                    rootfs=request.rootfs,
                    hold=held.of_launch(name, opened),
                    service=_remembered(request),
                    pod=request.pod,
                ),
            )
            if runtime.console_fd >= 0:
                self._held.hold_console(name, runtime.console_fd)
        except BaseException:
            opened.close()
            raise
        return _Made(runtime, opened, oom_watch(runtime))

    def _adopt(self, container: Container, made: _Made) -> None:
        container.runtime = made.runtime
        init = container.init
        init.pid = made.runtime.pid
        init.terminal = made.opened.terminal
        init.timings = made.runtime.timings
        init.streams = self._streams(init, made.opened, made.runtime.take_console())
        self._watch_oom(container, made.oom_watch)

    # ---- start -----------------------------------------------------------------------------------------------------

    async def start(self, process: Process) -> None:
        """Raises FailedPrecondition in the wrong state, RuntimeFailure; an exec that fails counts as exited then."""
        await self.to_the_end(self._start(process))

    async def _start(self, process: Process) -> None:
        container = process.container
        async with container.lock:
            _check_startable(process)
            process.starting = True
            try:
                if process.exec_id:
                    await self._launch_exec(process)
                else:
                    await self.in_thread(self.runtime.start, container.runtime)
            except FailedPrecondition:
                await self._start_refused(process)
                raise
            except BaseException:
                self._start_failed(process)
                raise
            self._start_done(process)

    def _start_done(self, process: Process) -> None:
        process.set_started(process.pid)
        self._announce.started(process)
        self._started(process)

    async def _start_refused(self, process: Process) -> None:
        """A former daemon may have let init go, and been killed then: so it runs."""
        runtime = process.container.runtime
        if not process.exec_id and await self.in_thread(self.runtime.status, runtime) is Status.RUNNING:
            self._start_done(process)
        else:
            self._start_failed(process)

    async def _launch_exec(self, process: Process) -> None:
        name = process.launch_name
        self._exits.expect(name, partial(self._endings.on_exit, process))
        try:
            launched, opened = await self.in_thread(self._make_exec, process)
        except BaseException:
            self._exits.unexpect(name)
            raise
        process.launched = launched
        process.pid = launched.pid
        process.timings = launched.timings
        process.streams = self._streams(process, opened, launched.console_fd)

    def _make_exec(self, process: Process) -> tuple[ExecProcess, OpenStdio]:
        assert process.spec is not None
        uid, gid = process.container.io_owner
        whose = Whose(process.container.namespace, process.exec_id)
        opened = open_stdio(*process.stdio, terminal=process.terminal, uid=uid, gid=gid, whose=whose)
        try:
            launched = self.runtime.exec(
                process.container.runtime,
                process.exec_id,
                process.spec,
                stdio=Stdio(*opened.ends, paths=process.stdio),
                options=ExecOptions(hold=held.of_launch(process.launch_name, opened), note=True),
            )
        except BaseException:
            opened.close()
            raise
        if launched.console_fd >= 0:
            self._held.hold_console(process.launch_name, launched.console_fd)
        return launched, opened

    def _streams(self, process: Process, opened: OpenStdio, console: int) -> Streams:
        return Streams(opened, console, followed=process.followed, input_ended=partial(self._input_ended, process))

    def _started(self, process: Process) -> None:
        process.starting = False
        held, process.exit_held = process.exit_held, None
        if held is not None:
            self._endings.on_exit(process, held)

    def _start_failed(self, process: Process) -> None:
        if process.exec_id:
            process.exit_held = None  # of a process that never became the program
            process.exited.set_result(Exit(process.id, 0, _START_FAILED << 8, time.time_ns(), 0, 0, 0))
            self._endings.publish_held_init_exit(process.container)
        self._started(process)

    # ---- exec ------------------------------------------------------------------------------------------------------

    def add_exec(self, container: Container, request: ExecRequest) -> Process:
        """Store a process that Start will launch; raises AlreadyExists, FailedPrecondition."""
        check_identifier(request.exec_id, kind="exec id")
        if request.exec_id in container.execs:
            raise AlreadyExists(f"exec {request.exec_id} already exists in container {container.id}")
        if container.deleted or container.init.status not in (CREATED, RUNNING):
            raise FailedPrecondition(f"cannot exec in a {status_word(container.init)} container")
        process = Process(container, request.exec_id, request.stdio)
        process.spec = request.process
        process.terminal = request.process.terminal
        process.followed = request.followed
        container.execs[request.exec_id] = process
        self._announce.exec_added(process)
        return process

    # ---- input -----------------------------------------------------------------------------------------------------

    def close_stdin(self, process: Process) -> None:
        """End input once its writers have ended theirs, even if that is after a restart of ours."""
        if process.streams is None or process.exited.done():
            return
        if process.stdio.stdin not in ("", ATTACH):
            write_note(partial(notes.note_input_closed, process.container.runtime, process.exec_id), process)
        process.streams.close_stdin()

    def _input_ended(self, process: Process) -> None:
        """For the program it ends when the keeper has let go of it, too. Nobody waits for that after its own end."""
        if not process.exited.done() and process.exit_held is None:
            self.in_background(self._drop_input(process), "ending input", process.container)

    async def _drop_input(self, process: Process) -> None:
        await self.in_thread(self._held.drop_input, process.launch_name)

    # ---- take back -------------------------------------------------------------------------------------------------

    def take_back(self, found: Found) -> None:
        """Know a container again that a former daemon has made."""
        runtime, state = found.runtime, found.runtime.state
        container = Container(state.namespace, state.id, state.bundle, StdioPaths(*state.stdio))
        container.runtime = runtime
        container.created_at_ns = convert.nanoseconds(state.created)
        container.paused = found.status is Status.PAUSED
        init = container.init
        init.pid = state.pid
        init.terminal = state.terminal
        if found.status is not Status.CREATED:
            init.started_at_ns = container.created_at_ns
        self._watch_oom(container, found.oom_watch)
        self.registry.add(container)
        container.init_exit = found.init.told
        self._take_back_process(init, found.init)
        for note, launched, how in found.execs:
            process = container.execs[note.id] = Process(container, note.id, StdioPaths(*note.stdio))
            process.pid, process.terminal, process.started_at_ns = note.pid, note.terminal, note.started_at_ns
            process.launched = launched
            self._take_back_process(process, how)

    def _take_back_process(self, process: Process, found: FoundProcess) -> None:
        if found.streams is not None:
            process.streams = self._streams(process, found.streams.opened, found.streams.console)
        if found.told is None:
            self._exits.expect(process.launch_name, partial(self._endings.on_exit, process))
            return
        process.exited.set_result(found.told)
        if process.streams is not None:
            process.streams.expire()

    def end_found(self, found: Found) -> None:
        """Announce the exits that nobody has announced yet. Of all at the keeper, those come again and do nothing."""
        container = self.registry.get(found.runtime.namespace, found.runtime.id)
        processes = [(container.execs[note.id], how) for note, _, how in found.execs]
        for process, how in (*processes, (container.init, found.init)):
            if how.told is None and how.ended is not None:
                self._exits.deliver(how.ended._replace(name=process.launch_name))

    def watch(self, process: Process, pidfd: int, exit_file: str) -> None:
        """Learn of the process's exit without the keeper."""
        self._exits.watch(process.launch_name, process.pid, pidfd, exit_file)

    # ---- delete ----------------------------------------------------------------------------------------------------

    async def delete(self, process: Process) -> Exit | None:
        """How the process ended, None for an exec that was never started. Raises FailedPrecondition while it runs."""
        return await self.to_the_end(
            self._delete_exec(process) if process.exec_id else self._delete_container(process.container)
        )

    async def remove(self, container: Container) -> None:
        """Delete in whatever state, killing what runs; somebody else may do so at the same time."""
        await self.end(container)
        with contextlib.suppress(NotFound):
            await self.delete(container.init)

    async def end(self, container: Container) -> None:
        """Kill the first process, unless it has ended or ends at this moment by itself."""
        if container.init.status != STOPPED:
            if container.oom_watcher is not None:
                container.oom_watcher.check()
            with contextlib.suppress(NotFound):
                await self.in_thread(partial(self.runtime.kill, container.runtime, SIGKILL))
            await asyncio.shield(container.init.exited)

    async def remove_exec(self, process: Process) -> None:
        """The same for an exec."""
        if process.launched is not None and not process.exited.done():
            with contextlib.suppress(NotFound):
                await self.in_thread(self.runtime.kill_exec, process.container.runtime, process.launched, SIGKILL)
            await asyncio.shield(process.exited)
        await self.delete(process)

    async def _delete_exec(self, process: Process) -> Exit | None:
        container = process.container
        if process.starting or (process.started_at_ns and not process.exited.done()):
            raise FailedPrecondition(f"cannot delete a running process {process.exec_id}")
        await self.drained(process)
        # Its container may be deleted at the same time, and takes what execs it has along.
        async with container.lock:
            if container.deleted or container.execs.pop(process.exec_id, None) is None:
                raise NotFound(f"process does not exist {process.exec_id}")
            if process.streams is not None:
                process.streams.close()
            if process.launched is not None:
                await self.in_thread(self.runtime.delete_exec, container.runtime, process.launched)
        return process.exit

    async def _delete_container(self, container: Container) -> Exit | None:
        init = container.init
        if init.status == CREATED:
            await self.end(container)
        if init.status != STOPPED:
            raise FailedPrecondition(f"cannot delete a {status_word(init)} container")
        await self.drained(init)
        # containerd deletes on the exit event and hangs up, which would cut off its own Kill from its answer.
        while container.signals:
            await asyncio.wait(container.signals)
        async with container.lock:
            if container.deleted:
                raise NotFound(f"container {container.id} is deleted")
            problems = await self.in_thread(self._take_apart, container)
            container.deleted = True
        for problem in problems:
            _log.warning("%s", problem, extra=container.fields)
        self._forget(container)
        ended = init.exited.result()
        self._announce.deleted(container, ended)
        return ended

    def _take_apart(self, container: Container) -> tuple[str, ...]:
        for process in tuple(container.execs.values()):  # another may be added meanwhile
            if process.launched is not None:
                self.runtime.delete_exec(container.runtime, process.launched)
                process.launched = None
        # By force, since its freezer may say "paused" of a container whose processes are all dead.
        return self.runtime.delete(container.runtime, force=True)

    async def drained(self, process: Process) -> None:
        """Wait until the output of a dead process is taken, but not for ever."""
        if process.streams is None or process.streams.is_drained:
            return
        try:
            await asyncio.wait_for(process.streams.drained(), self._drain_seconds)
        except TimeoutError:
            _log.warning(
                "output of %s was not taken in %g s", process.id, self._drain_seconds, extra=process.container.fields
            )

    def _forget(self, container: Container) -> None:
        self._release(container)
        self.registry.remove(container)

    def _release(self, container: Container) -> None:
        for process in (container.init, *container.execs.values()):
            if process.streams is not None:
                process.streams.close()
        if container.oom_watcher is not None:
            container.oom_watcher.close()

    def _watch_oom(self, container: Container, watch: Watch | None) -> None:
        if watch is not None:
            container.oom_watcher = OomWatcher(watch, partial(self._oom_killed, container))

    def _oom_killed(self, container: Container) -> None:
        container.oom_killed = True
        self._announce.oom(container)


def _remembered(request: CreateRequest) -> dict[str, str | int]:
    """What Container reads from the runtime's state."""
    options = request.options
    wanted: dict[str, str | int] = {
        "origin": request.origin,
        "io_uid": options.io_uid,
        "io_gid": options.io_gid,
        "sandbox": int(request.pod is not None),
    }
    return {name: value for name, value in wanted.items() if value}


def _check_startable(process: Process) -> None:
    container = process.container
    if container.deleted:
        raise NotFound(f"container {container.id} is deleted")
    if process.status != CREATED or process.started_at_ns:
        raise FailedPrecondition(f"cannot start a {status_word(process)} process")
    if process.exec_id:
        if container.init.status == STOPPED:
            raise FailedPrecondition(f"container {container.id} init process is not running")
        if container.paused:
            raise FailedPrecondition("cannot exec in a paused container")


def oom_watch(runtime: RuntimeContainer) -> Watch | None:
    """None where the kernel cannot tell: without a memory controller."""
    try:
        return runtime.cgroup.oom_watch()
    except RuntimeFailure as error:
        _log.debug("no word of OOM kills: %s", error, extra={"id": runtime.id})
        return None


def _log_failure(what: str, fields: Mapping[str, str], task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s failed: %s", what, error, extra=fields, exc_info=error)
