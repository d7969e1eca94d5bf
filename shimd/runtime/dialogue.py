"""The runtime's half of the handshake with init, drawn in ``shimd.init.handshake``: used by create and exec alike."""

from __future__ import annotations

import errno
import os
import select
from _socket import socket

from shimd.contexts import suppress
from shimd.errors import RuntimeFailure
from shimd.init import handshake
from shimd.init.handshake import Failure
from shimd.linux import pty
from shimd.records import Record
from shimd.typed import Callable


class Outcome(Record):
    """What came out of a handshake that went well; ``console`` is the pty's master or -1."""

    console: int
    warnings: tuple[str, ...]


class InitFailed(RuntimeFailure):
    """A step of the plan failed; ``failure`` is what init said, ``where`` the step and the field that asked for it."""

    def __init__(self, failure: Failure) -> None:
        step = f"step {failure.step}" if failure.step >= 0 else "set-up"
        self.where = f"{step} ({failure.origin})" if failure.origin else step
        super().__init__(f"{self.where}: {failure}")
        self.failure = failure


class InitDied(RuntimeFailure):
    """Init ended without a word; ``after`` is the last point that it had reached, or "launch"."""

    def __init__(self, after: str) -> None:
        super().__init__(f"init died after {after}")
        self.after = after


MapIds = Callable[[handshake.Message], int]


def _no_maps(message: handshake.Message) -> int:
    return errno.EINVAL


def converse(
    control: socket,
    pidfd: int,
    on_sync: Callable[[str], None],
    *,
    gate: bool,
    map_ids: MapIds = _no_maps,
    on_listener: handshake.OnListener = handshake.no_listener,
    raw_newlines: bool = False,
) -> Outcome:
    """Answer init until it waits at the start ``gate``, or without one has executed the program.

    ``on_sync`` does the runtime's part at "maps", "network", "hooks" and "ready"; ``map_ids`` at "idmap" and "ridmap",
    whose descriptor stays with this function, returns an errno or 0; ``on_listener`` gets the number that the listener
    of a seccomp filter has in init, and the listener itself or -1, which becomes its own. Raises InitFailed, InitDied,
    or what they raise, with a received console closed; the process is then the caller's to kill.
    """
    talk = _Talk(control, pidfd, gate=gate)
    talk.raw_newlines = raw_newlines
    try:
        return talk.run(on_sync, map_ids, on_listener)
    except BaseException:
        if talk.console >= 0:
            os.close(talk.console)
        raise


def _and_close(message: handshake.Message, map_ids: MapIds) -> int:
    try:
        return map_ids(message)
    finally:
        os.close(message.fd)


class _Talk:
    def __init__(self, control: socket, pidfd: int, *, gate: bool) -> None:
        control.settimeout(0)
        self.control = control
        self.gate = gate
        self.raw_newlines = False
        self.console = -1
        self.warnings: list[str] = []
        self.reached = "launch"
        self.poller = select.poll()
        self.poller.register(control, select.POLLIN)
        self.poller.register(pidfd, select.POLLIN)

    def run(self, on_sync: Callable[[str], None], map_ids: MapIds, on_listener: handshake.OnListener) -> Outcome:
        while True:
            message = self._next()
            if message.kind == "sync":
                self.reached = message.text
                on_sync(message.text)
                self._answer(handshake.GO)
            elif message.kind in ("idmap", "ridmap"):
                self._answer(handshake.mapped(_and_close(message, map_ids)))
            elif message.kind == "listener":
                on_listener(int(message.text), message.fd)
                self._answer(handshake.GO)
            elif message.kind == "warning":
                self.warnings.append(message.text)
            elif message.kind == "console":
                self._keep_console(message.fd)
            elif message.failure is not None:
                raise InitFailed(message.failure)
            elif message.kind == "eof" and (self.gate or self.reached != "ready"):
                raise InitDied(self.reached)
            else:
                return Outcome(self.console, tuple(self.warnings))

    def _next(self) -> handshake.Message:
        """The pidfd is watched besides, since a descendant of a dead init could hold its end of ``control`` open."""
        self.poller.poll()
        try:
            return handshake.receive(self.control)
        except BlockingIOError:
            return handshake.Message("eof")
        except handshake.ProtocolError as error:
            raise RuntimeFailure(f"handshake with init: {error}") from error

    def _answer(self, data: bytes) -> None:
        # A failure means that init is dead; what it said last is still to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(data)

    def _keep_console(self, fd: int) -> None:
        if self.console >= 0:
            os.close(fd)
            raise RuntimeFailure("handshake with init: a second console")
        self.console = fd
        if self.raw_newlines:
            pty.disable_onlcr(fd)
