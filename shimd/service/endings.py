"""From the end of a process to its announcement, in the order that clients rely on.

- When init dies, the exits of its execs come first; an exit is published once.
- An exit is published when the output before it has reached its readers, or a moment later if nobody reads.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from shimd.runtime import notes
from shimd.runtime.container import Runtime
from shimd.service.announce import Announcer
from shimd.service.records import Container, Process
from shimd.supervise.exits import Exit
from shimd.supervise.readers import Readers

SIGKILL = 9

_log = logging.getLogger(__name__)


class InThread(Protocol):
    def __call__(self, function: Callable[..., None], *args: object) -> Awaitable[None]: ...


class InBackground(Protocol):
    def __call__(self, operation: Coroutine[Any, Any, None], what: str, container: Container) -> None: ...


class Endings:
    """One for the daemon, of its lifecycle, whose ways to get things done it borrows."""

    def __init__(self, runtime: Runtime, announce: Announcer, in_thread: InThread, in_background: InBackground) -> None:
        self._runtime = runtime
        self._announce = announce
        self._in_thread = in_thread
        self._in_background = in_background
        self._readers = Readers()

    def close(self) -> None:
        self._readers.close()

    def on_exit(self, process: Process, ended: Exit) -> None:
        """Every process comes here once, but for those whose start event is not out yet: they come again."""
        if process.starting:
            process.exit_held = ended
        elif process.exec_id or process.container.runtime.state.own_pid_namespace:
            self._when_read(process, ended)
        else:
            self._in_background(
                self._end_leftovers(process, ended), "ending what the first process left", process.container
            )

    async def _end_leftovers(self, process: Process, ended: Exit) -> None:
        """Without a pid namespace of its own, nobody but us ends the container's other processes."""
        try:
            await self._in_thread(partial(self._runtime.kill, process.container.runtime, SIGKILL, everyone=True))
        finally:
            self._when_read(process, ended)

    def _when_read(self, process: Process, ended: Exit) -> None:
        publish = partial(self._publish, process, ended)
        if process.streams is None:
            publish()
        else:
            process.streams.when_read(self._readers, publish)

    def _publish(self, process: Process, ended: Exit) -> None:
        if process.exec_id:
            self._publish_exit(process, ended)
        else:
            process.container.init_exit = ended
        self.publish_held_init_exit(process.container)

    def publish_held_init_exit(self, container: Container) -> None:
        """To be called when an exec has ended."""
        ended = container.init_exit
        if ended is not None and not container.init.exited.done() and not container.running_execs():
            self._publish_exit(container.init, ended)

    def _publish_exit(self, process: Process, ended: Exit) -> None:
        container = process.container
        if container.oom_watcher is not None:
            container.oom_watcher.check(by_kill=not process.exec_id and ended.wait_status == SIGKILL)
        if not process.exec_id:
            container.paused = False
        self._announce.exited(process, ended)
        write_note(partial(notes.note_exit, container.runtime, process.exec_id, ended), process)
        process.exited.set_result(ended)


def write_note(write: Callable[[], None], process: Process) -> None:
    """Something for the daemon after us, which does worse without."""
    try:
        write()
    except OSError as error:
        _log.error("a note of %s cannot be written: %s", process.id, error, extra=process.container.fields)
