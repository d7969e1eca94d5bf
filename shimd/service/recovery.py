"""After a restart of the daemon, or of the keeper: know again what goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable

from shimd.errors import RuntimeFailure, ShimdError
from shimd.runtime import notes
from shimd.runtime.container import Runtime
from shimd.runtime.execing import is_running
from shimd.runtime.model import Container as RuntimeContainer
from shimd.runtime.model import ExecProcess, launch_name
from shimd.runtime.status import Status
from shimd.service.lifecycle import Found, FoundProcess, Lifecycle, oom_watch
from shimd.supervise.exits import UNKNOWN_STATUS, Exit, recorded_exit
from shimd.supervise.held import HeldStreams, Listing, TakenBack
from shimd.supervise.logger import Whose

_log = logging.getLogger(__name__)


async def load(lifecycle: Lifecycle, held: HeldStreams) -> None:
    """Take every container in the state directory back into the registry; announce the exits of the meantime."""
    known = await lifecycle.in_thread(held.listing)
    found = await lifecycle.in_thread(_find, lifecycle.runtime, held, known)
    for container in found:
        lifecycle.take_back(container)
        _log.info("found %s container", container.status, extra=_fields(container.runtime))
    for container in found:
        lifecycle.end_found(container)
    await lifecycle.in_thread(_end_strangers, lifecycle.runtime, known, _launches(found))
    watch_processes(lifecycle, known.alive)


def _find(runtime: Runtime, held: HeldStreams, known: Listing) -> list[Found]:
    found: list[Found] = []
    for namespace in runtime.namespaces():
        listing = runtime.list(namespace=namespace)
        for problem in listing.problems:
            _log.error("a container cannot be loaded: %s", problem, extra={"namespace": namespace})
        for container_id in listing.strays:
            _remove_stray(runtime, namespace, container_id)
        for container in listing.containers:
            if runtime.is_made(container):
                found.append(_look_at(runtime, container, held, known))
            else:
                _remove_unfinished(runtime, container)
    return found


def _look_at(runtime: Runtime, container: RuntimeContainer, held: HeldStreams, known: Listing) -> Found:
    status = runtime.status(container)
    is_alive = status is not Status.STOPPED

    def look(exec_id: str, pid: int, stdio: tuple[str, str, str], *, is_alive: bool) -> FoundProcess:
        launch = launch_name(container.namespace, container.id, exec_id)
        told = recorded_exit(notes.told_file(container, exec_id))
        # The keeper reports those that it has not reaped yet.
        is_over = not is_alive and launch not in known.alive
        ended = told or (_how_it_ended(container, exec_id, pid) if is_over else None)
        return FoundProcess(told, ended, _streams(container, exec_id, held, known.held, stdio))

    init = look("", container.pid, container.state.stdio, is_alive=is_alive)
    execs = tuple(
        (note, launched, look(note.id, note.pid, note.stdio, is_alive=is_running(launched)))
        for note, launched in _execs(runtime, container)
    )
    return Found(container, status, init, execs, oom_watch(container) if is_alive else None)


def _execs(runtime: Runtime, container: RuntimeContainer) -> tuple[tuple[notes.ExecNote, ExecProcess], ...]:
    try:
        return runtime.find_execs(container)
    except RuntimeFailure as error:
        _log.error("execs cannot be found again: %s", error, extra=_fields(container))
        return ()


def _streams(
    container: RuntimeContainer, exec_id: str, held: HeldStreams, names: Iterable[str], stdio: tuple[str, str, str]
) -> TakenBack | None:
    launch = launch_name(container.namespace, container.id, exec_id)
    whose = Whose(container.namespace, exec_id or container.id)
    input_closed = notes.input_was_closed(container, exec_id)
    taken = held.take_back(launch, names, stdio, whose, input_closed=input_closed)
    if taken is not None and taken.problem:
        _log.warning("output goes nowhere: %s", taken.problem, extra=_fields(container))
    return taken


def _launches(found: list[Found]) -> set[str]:
    """The names of all processes that we know."""
    return {
        launch_name(each.runtime.namespace, each.runtime.id, exec_id)
        for each in found
        for exec_id in ("", *(note.id for note, _, _ in each.execs))
    }


def _end_strangers(runtime: Runtime, known: Listing, ours: set[str]) -> None:
    """A former daemon was killed before it had written down what it launched, or before the keeper was told that it is
    over. What belongs to a container that cannot be loaded is left alone.
    """
    unloaded = [
        name
        for namespace in runtime.namespaces()
        for container_id in runtime.ids(namespace=namespace)
        if (name := launch_name(namespace, container_id)) not in ours
    ]
    for name in {*known.alive, *(ended.name for ended in known.exits)} - ours:
        if not any(name == other or name.startswith((f"{other}/", f"{other}:")) for other in unloaded):
            runtime.env.launcher.end(name)
            _log.info("ended what an unfinished operation had launched: %s", name)


def _fields(container: RuntimeContainer) -> dict[str, str]:
    return {"namespace": container.namespace, "id": container.id}


def _remove_stray(runtime: Runtime, namespace: str, container_id: str) -> None:
    """We were killed in the middle of a create."""
    fields = {"namespace": namespace, "id": container_id}
    try:
        runtime.remove_stray(container_id, namespace=namespace)
        _log.info("removed what an unfinished create had left", extra=fields)
    except ShimdError as error:
        _log.error("an unfinished create cannot be removed: %s", error, extra=fields)


def _remove_unfinished(runtime: Runtime, container: RuntimeContainer) -> None:
    """The same, when everything was made but its creator had not said so yet."""
    fields = _fields(container)
    try:
        problems = runtime.delete(container, force=True)
        _log.info("removed what an unfinished create had left", extra=fields)
    except ShimdError as error:
        container.close()
        problems = (str(error),)
    for problem in problems:
        _log.error("an unfinished create: %s", problem, extra=fields)


def _how_it_ended(container: RuntimeContainer, exec_id: str, pid: int) -> Exit:
    """What the keeper wrote down, or that nobody knows."""
    recorded = recorded_exit(notes.exit_file(container, exec_id))
    return recorded or Exit("", pid, UNKNOWN_STATUS, time.time_ns(), 0, 0, 0)


def watch_processes(lifecycle: Lifecycle, reported: Container[str] = ()) -> None:
    """Nobody reports exits, but for those of the launches in ``reported``: look for them through the pidfds of all
    processes that live.
    """
    for container in lifecycle.registry.all():
        runtime = container.runtime
        processes = [(process, process.launched.pidfd) for process in container.running_execs() if process.launched]
        if not container.init.exited.done() and container.init_exit is None:
            processes.append((container.init, runtime.pidfd))
        for process, pidfd in processes:
            if process.launch_name not in reported:
                lifecycle.watch(process, pidfd, notes.exit_file(runtime, process.exec_id))
