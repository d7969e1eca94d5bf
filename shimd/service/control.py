"""Signals, pause and resume, limits and figures of containers, with the rules of containerd's shims."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shimd.cgroups.stats import Stats
from shimd.errors import FailedPrecondition, InvalidArgument, NotFound
from shimd.oci.model import Resources
from shimd.service.announce import Announcer
from shimd.service.lifecycle import Lifecycle
from shimd.service.records import PAUSED, RUNNING, STOPPED, Container, Process, status_word

_MAX_SIGNAL = 64
_MAX_WINDOW = 0xFFFF


class Control:
    """Signals take no lock: they must reach a container whose other operation hangs."""

    def __init__(self, lifecycle: Lifecycle, announce: Announcer) -> None:
        self._lifecycle = lifecycle
        self._runtime = lifecycle.runtime
        self._announce = announce
        self._in_thread = lifecycle.in_thread

    async def kill(self, process: Process, signal: int, *, everyone: bool) -> None:
        """Raises NotFound for a process that has exited, FailedPrecondition for an exec that was not started."""
        if signal > _MAX_SIGNAL:
            raise InvalidArgument(f"there is no signal {signal}")
        container = process.container
        if process.exec_id and not everyone:
            await self._kill_exec(process, signal)
            return
        if container.init.status == STOPPED and not everyone:
            raise NotFound("process already finished")
        await self._signal(container, partial(self._runtime.kill, container.runtime, signal, everyone=everyone))

    async def _kill_exec(self, process: Process, signal: int) -> None:
        if process.status == STOPPED:
            raise NotFound("process already finished")
        if process.launched is None:
            raise FailedPrecondition("process not created")
        kill = partial(self._runtime.kill_exec, process.container.runtime, process.launched, signal)
        await self._signal(process.container, kill)

    async def _signal(self, container: Container, send: Callable[[], None]) -> None:
        """Noted, so that what the signal brings about is not over before the sender has the answer; see Lifecycle."""
        if container.oom_watcher is not None:
            container.oom_watcher.check()
        sending = self._in_thread(send)
        container.signals.add(sending)
        sending.add_done_callback(container.signals.discard)
        await sending

    async def pids(self, container: Container) -> list[int]:
        return await self._in_thread(self._runtime.pids, container.runtime)

    async def pause(self, container: Container) -> None:
        await self._lifecycle.to_the_end(self._pause(container))

    async def _pause(self, container: Container) -> None:
        async with container.lock:
            if container.init.status != RUNNING:
                raise FailedPrecondition(f"cannot pause a {status_word(container.init)} container")
            container.pausing = True
            try:
                await self._in_thread(self._runtime.pause, container.runtime)
            finally:
                container.pausing = False
            container.paused = True
            self._announce.paused(container)

    async def resume(self, container: Container) -> None:
        await self._lifecycle.to_the_end(self._resume(container))

    async def _resume(self, container: Container) -> None:
        async with container.lock:
            if container.init.status != PAUSED:
                raise FailedPrecondition(f"cannot resume a {status_word(container.init)} container")
            await self._in_thread(self._runtime.resume, container.runtime)
            container.paused = False
            self._announce.resumed(container)

    async def update(self, container: Container, change: Resources) -> tuple[str, ...]:
        """Returns warnings."""
        return await self._lifecycle.to_the_end(self._update(container, change))

    async def _update(self, container: Container, change: Resources) -> tuple[str, ...]:
        async with container.lock:
            if container.init.status == STOPPED:
                raise FailedPrecondition("cannot update a stopped container")
            return await self._in_thread(self._runtime.update, container.runtime, change)

    async def stats(self, container: Container) -> Stats:
        """Raises NotFound once the processes, and so the figures, are gone."""
        if container.init.status == STOPPED:
            raise NotFound(f"container {container.id} is stopped: no figures any more")
        return await self._in_thread(self._runtime.stats, container.runtime)

    async def pod_stats(self, sandbox: Container) -> Stats:
        """Of all that is in its pod's cgroup. Raises NotFound as ``stats``."""
        if sandbox.init.status == STOPPED:
            raise NotFound(f"sandbox {sandbox.id} is stopped: no figures any more")
        return await self._in_thread(self._runtime.pod_stats, sandbox.runtime)

    def close_stdin(self, process: Process) -> None:
        self._lifecycle.close_stdin(process)

    def resize(self, process: Process, width: int, height: int) -> None:
        """Nothing happens without a terminal, as in containerd's shims."""
        check_window(width, height)
        if process.terminal and process.streams is not None and process.status != STOPPED:
            process.streams.resize(width, height)


def check_window(width: int, height: int) -> None:
    if width > _MAX_WINDOW or height > _MAX_WINDOW:
        raise InvalidArgument(f"a window of {width}x{height} is too large")
