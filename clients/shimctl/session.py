"""One attached process: its output here, our input, window size and signals there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable
from typing import NamedTuple

from clients.shimctl.connect import CLIENT_FAILED, Client, Failure
from clients.shimctl.duplex import Duplex
from clients.shimctl.terminal import DetachKeys, chunks, raw_mode, window_size, write_all
from shimd.api.v1 import runtime_pb2 as pb

PROXIED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
INSISTENT = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 3  # that many of them end us, as docker: the first process of a container may ignore every one
BROKEN_PIPE = 128 + signal.SIGPIPE
HUNG_UP = 128 + signal.SIGHUP
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
    call = Duplex(client.runtime.Attach(None, metadata=client.metadata))
    opening = asyncio.create_task(call.send(session.first))
    with contextlib.ExitStack() as stack:
        # Before the terminal is made raw: from here on, no signal ends us without its being put right.
        ended = _forward_signals(stack, call, terminal=session.terminal)
        if session.terminal and os.isatty(0):
            stack.enter_context(raw_mode(0))
        tasks = [ended, asyncio.create_task(_receive(call, session))]
        try:
            await opening
            if session.terminal and session.first.HasField("target"):
                await call.send(_resize())
            if session.stdin:
                tasks.append(asyncio.create_task(_send_stdin(call, session)))
            return await _first_result(tasks)
        finally:
            await call.close()
            await _cancel(*tasks)


async def _first_result(tasks: Iterable[asyncio.Future[int | None]]) -> int:
    """The status from whichever task has one first; the end of our stdin has none."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            status = task.result()
            if status is not None:
                return status
    raise AssertionError("the receiver ends with a status or an error")


async def _cancel(*tasks: asyncio.Future[int | None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(call: Duplex, session: Session) -> int | None:
    async for event in call.events():
        kind = event.WhichOneof("event")
        if kind == "created" and session.on_created:
            session.on_created(event.created)
        elif kind == "output":
            fd = 2 if event.output.stream == pb.Output.STDERR else 1
            try:
                # In a thread, so that signals are passed on while a slow reader keeps us waiting.
                await asyncio.to_thread(write_all, fd, event.output.data)
            except BrokenPipeError:
                return BROKEN_PIPE
            except OSError as error:
                return _lost(error)
        elif kind == "exited":
            return event.exited.exit_status
    raise Failure(
        "the daemon ended the connection before the program ended",
        hint="look with `shimctl list`; `shimctl attach ID` connects again",
        code=CLIENT_FAILED,
    )


async def _send_stdin(call: Duplex, session: Session) -> int | None:
    try:
        return await _pass_stdin(call, session)
    except OSError as error:
        return _lost(error)


def _lost(error: OSError) -> int:
    """A terminal that was hung up reads and writes EIO; anything else is not expected of standard streams."""
    if error.errno != errno.EIO:
        raise error
    return HUNG_UP


async def _pass_stdin(call: Duplex, session: Session) -> int | None:
    raw = session.terminal and os.isatty(0)
    keys = DetachKeys() if session.detachable and session.terminal else None
    async for data in chunks(0):
        detach = False
        if keys:
            data, detach = keys.feed(data)
        if data:
            await call.send(pb.AttachRequest(stdin=data))
        if detach:
            return DETACHED
    if raw:  # the end of file that is typed is a byte
        return HUNG_UP
    await call.send(pb.AttachRequest(close_stdin=pb.CloseStdin()))
    return None


def _resize() -> pb.AttachRequest:
    columns, rows = window_size()
    return pb.AttachRequest(resize=pb.WindowSize(width=columns, height=rows))


def _forward_signals(stack: contextlib.ExitStack, call: Duplex, *, terminal: bool) -> asyncio.Future[int | None]:
    """Pass signals and, with a terminal, its changes of size to the program, until ``stack`` ends. The answer has a
    status when signals insist on our end.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int | None] = loop.create_future()
    insisted = 0

    def forward(number: signal.Signals) -> None:
        nonlocal insisted
        call.post(pb.AttachRequest(signal=number))
        insisted += number in INSISTENT
        if insisted >= PATIENCE and not ended.done():
            ended.set_result(128 + number)

    for number in PROXIED:
        loop.add_signal_handler(number, forward, number)
        stack.callback(loop.remove_signal_handler, number)
    if terminal:
        loop.add_signal_handler(signal.SIGWINCH, lambda: call.post(_resize()))
        stack.callback(loop.remove_signal_handler, signal.SIGWINCH)
    return ended
