"""After a restart of the daemon, or of the keeper: know again what goes on."""

from __future__ import annotations

import logging
import os
import time

from shimd.errors import ShimdError
from shimd.runtime.container import Runtime
from shimd.runtime.model import Container as RuntimeContainer
from shimd.runtime.model import launch_name
from shimd.runtime.state import EXEC_EXIT_SUFFIX, EXIT_FILE
from shimd.runtime.status import Status
from shimd.service.lifecycle import Lifecycle
from shimd.supervise.exits import UNKNOWN_STATUS, Exit, recorded_exit

_log = logging.getLogger(__name__)

_Found = tuple[RuntimeContainer, Status, Exit | None]


async def load(lifecycle: Lifecycle) -> None:
    """Take every container in the state directory back into the registry, dead ones with how they ended."""
    for runtime, status, ended in await lifecycle.in_thread(_find, lifecycle.runtime):
        lifecycle.take_back(runtime, status, ended)
        _log.info("found %s container", status.value, extra={"namespace": runtime.namespace, "id": runtime.id})


def _find(runtime: Runtime) -> list[_Found]:
    found: list[_Found] = []
    for namespace in runtime.namespaces():
        listing = runtime.list(namespace=namespace)
        for problem in listing.problems:
            _log.error("a container cannot be loaded: %s", problem, extra={"namespace": namespace})
        for container_id in listing.strays:
            _remove_stray(runtime, namespace, container_id)
        for container in listing.containers:
            status = runtime.status(container)
            ended = _how_it_ended(container) if container.pidfd < 0 or status is Status.STOPPED else None
            found.append((container, status, ended))
    return found


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
