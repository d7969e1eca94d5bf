"""After a restart of the daemon, or of the keeper: know again what goes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

from shimd.errors import ShimdError
from shimd.records import Record
from shimd.runtime.container import Runtime
from shimd.runtime.model import Container as RuntimeContainer
from shimd.runtime.model import launch_name
from shimd.runtime.state import EXEC_EXIT_SUFFIX, EXIT_FILE
from shimd.runtime.status import Status
from shimd.service.lifecycle import Lifecycle, oom_watch
from shimd.supervise.exits import UNKNOWN_STATUS, Exit, recorded_exit
from shimd.supervise.held import HeldStreams, TakenBack
from shimd.supervise.logger import Whose
from shimd.supervise.oom import Watch

_log = logging.getLogger(__name__)


class _Found(Record):
    """``streams`` as far as the keeper held them."""

    runtime: RuntimeContainer
    status: Status
    ended: Exit | None
    streams: TakenBack | None
    oom_watch: Watch | None  # of one that lives


async def load(lifecycle: Lifecycle, held: HeldStreams) -> None:
    """Take every container in the state directory back into the registry, dead ones with how they ended."""
    for found in await lifecycle.in_thread(_find, lifecycle.runtime, held):
        lifecycle.take_back(*found)
        runtime, status = found.runtime, found.status
        _log.info("found %s container", status, extra=_fields(runtime))


def _find(runtime: Runtime, held: HeldStreams) -> list[_Found]:
    found: list[_Found] = []
    names = held.names()
    for namespace in runtime.namespaces():
        listing = runtime.list(namespace=namespace)
        for problem in listing.problems:
            _log.error("a container cannot be loaded: %s", problem, extra={"namespace": namespace})
        for container_id in listing.strays:
            _remove_stray(runtime, namespace, container_id)
        for container in listing.containers:
            status = runtime.status(container)
            ended = _how_it_ended(container) if container.pidfd < 0 or status is Status.STOPPED else None
            watch = oom_watch(container) if ended is None else None
            found.append(_Found(container, status, ended, _streams(container, held, names), watch))
    return found


def _streams(container: RuntimeContainer, held: HeldStreams, names: Iterable[str]) -> TakenBack | None:
    launch = launch_name(container.namespace, container.id)
    whose = Whose(container.namespace, container.id)
    taken = held.take_back(launch, names, container.state.stdio, whose)
    if taken is not None and taken.problem:
        _log.warning("output goes nowhere: %s", taken.problem, extra=_fields(container))
    return taken


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


def _how_it_ended(container: RuntimeContainer) -> Exit:
    """What the keeper wrote down, or that nobody knows."""
    name = launch_name(container.namespace, container.id)
    recorded = recorded_exit(os.path.join(container.directory.path, EXIT_FILE))
    return recorded or Exit(name, container.pid, UNKNOWN_STATUS, time.time_ns(), 0, 0, 0)


def watch_processes(lifecycle: Lifecycle) -> None:
    """Nobody reports exits: look for them through the pidfds of all processes that live."""
    for container in lifecycle.registry.all():
        directory = container.runtime.directory.path
        if not container.init.exited.done() and container.init_exit is None:
            lifecycle.watch(container.init, container.runtime.pidfd, os.path.join(directory, EXIT_FILE))
        for process in container.running_execs():
            if process.launched is not None:
                exit_file = os.path.join(directory, process.exec_id + EXEC_EXIT_SUFFIX)
                lifecycle.watch(process, process.launched.pidfd, exit_file)
