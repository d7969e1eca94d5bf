"""One attached process: its output here, our input, window size and signals there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from clients.shimctl.connect import CLIENT_FAILED, Client, Failure
from clients.shimctl.terminal import DetachKeys, chunks, raw_mode, window_size, write_all
from shimd.api.v1 import runtime_pb2 as pb

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

    Call = StreamStreamCall[pb.AttachRequest, pb.ProcessEvent]

PROXIED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
BROKEN_PIPE = 128 + signal.SIGPIPE
DETACHED = 0


class Session(NamedTuple):
    """What to attach; ``stdin``: pass ours on, ``terminal``: make it raw, ``detachable``: watch for the detach keys."""

    first: pb.AttachRequest
    stdin: bool
    terminal: bool
    detachable: bool
    on_created: Callable[[pb.Created], None] | None = None


async def attach(client: Client, session: Session) -> int:
    """Run a session to its end; the program's exit status, or 0 after the detach keys."""
    call: Call = client.runtime.Attach(None, metadata=client.metadata)
    with contextlib.ExitStack() as stack:
        if session.terminal and os.isatty(0):
            stack.enter_context(raw_mode(0))
        sender = _Sender(call)
        await sender.send(session.first)
        tasks = [asyncio.create_task(_receive(call, session))]
        if session.stdin:
            tasks.append(asyncio.create_task(_send_stdin(sender, session)))
        stack.callback(_forward_signals(sender, terminal=session.terminal))
        try:
            return await _first_result(tasks)
        finally:
            call.cancel()
            await sender.close()


class _Sender:
    """Writes to the stream one at a time, and keeps the tasks that signal handlers start."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, request: pb.AttachRequest) -> None:
        async with self._lock:
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: its status is read elsewhere
                await self._call.write(request)

    def post(self, request: pb.AttachRequest) -> None:
        task = asyncio.get_running_loop().create_task(self.send(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _first_result(tasks: list[asyncio.Task[int | None]]) -> int:
    """The status from whichever task has one first; the end of our stdin has none."""
    pending: set[asyncio.Task[int | None]] = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                status = task.result()
                if status is not None:
                    return status
        raise AssertionError("the receiver ends with a status or an error")
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _receive(call: Call, session: Session) -> int | None:
    async for event in call:
        kind = event.WhichOneof("event")
        if kind == "created" and session.on_created:
            session.on_created(event.created)
        elif kind == "output":
            try:
                write_all(2 if event.output.stream == pb.Output.STDERR else 1, event.output.data)
            except BrokenPipeError:
                return BROKEN_PIPE
        elif kind == "exited":
            return event.exited.exit_status
    raise Failure(
        "the daemon ended the connection before the program ended",
        hint="look with `shimctl list`; `shimctl attach ID` connects again",
        code=CLIENT_FAILED,
    )


async def _send_stdin(sender: _Sender, session: Session) -> int | None:
    keys = DetachKeys() if session.detachable and session.terminal else None
    async for data in chunks(0):
        detach = False
        if keys:
            data, detach = keys.feed(data)
        if data:
            await sender.send(pb.AttachRequest(stdin=data))
        if detach:
            return DETACHED
    await sender.send(pb.AttachRequest(close_stdin=pb.CloseStdin()))
    return None


def _forward_signals(sender: _Sender, *, terminal: bool) -> Callable[[], None]:
    """Pass signals and, with a terminal, its changes of size to the program; the answer undoes it."""
    loop = asyncio.get_running_loop()

    def resize() -> None:
        columns, rows = window_size()
        sender.post(pb.AttachRequest(resize=pb.WindowSize(width=columns, height=rows)))

    handlers: dict[signal.Signals, Callable[[], None]] = {
        number: lambda number=number: sender.post(pb.AttachRequest(signal=number))  # type: ignore[misc]
        for number in PROXIED
    }
    if terminal:
        handlers[signal.SIGWINCH] = resize
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)

    def undo() -> None:
        for number in handlers:
            loop.remove_signal_handler(number)

    return undo
