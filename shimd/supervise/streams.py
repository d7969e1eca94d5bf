"""The running streams of one process: relays, console and attached clients behind one handle."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable

from shimd.errors import FailedPrecondition
from shimd.linux import pty
from shimd.supervise.attach import STDERR, STDOUT, AttachPoint
from shimd.supervise.readers import Hold, Readers
from shimd.supervise.relay import CopyRelay, FileRelay, Relay, SpliceRelay
from shimd.supervise.stdio import OpenStdio

# What was written to a terminal reaches its master through a work queue of the kernel, a moment later.
_TERMINAL_DELAY = 0.1  # seconds

_PIPE_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class Streams:
    """Takes over the descriptors of ``opened``, and ``console`` (the terminal's master, or -1). ``followed``: a client
    is about to attach, whose output waits for it. ``input_ended`` is called when no more input will come.
    """

    def __init__(
        self, opened: OpenStdio, console: int, *, followed: bool = False, input_ended: Callable[[], None] | None = None
    ) -> None:
        opened.close_ends()
        self._loop = asyncio.get_running_loop()
        self._drained: asyncio.Future[None] = self._loop.create_future()
        self._unfinished = 1  # ourselves, until everything is set up
        self._console = console
        self._expired = False
        self._followed = followed
        self._outputs: list[Relay] = []
        self._hold: Hold | None = None
        self._input: Relay | None = None
        self._input_ended = input_ended
        self._input_keeper = opened.input_keeper
        self.attach_point: AttachPoint | None = None
        if console >= 0:
            os.set_blocking(console, False)
        self._logger, opened.logger = opened.logger, None
        if self._logger is not None:
            self._unfinished += 1
            self._logger.watch(self._output_ended)
        self._start_outputs(opened)
        self._start_input(opened)
        self._output_ended()

    @property
    def is_drained(self) -> bool:
        return self._drained.done()

    async def drained(self) -> None:
        """Returns when all that the process, which is dead, has written is with its readers (or its FIFO)."""
        self.expire()
        await asyncio.shield(self._drained)

    def when_read(self, readers: Readers, over: Callable[[], None]) -> None:
        """The process is dead: call ``over`` when its output has been read from its FIFOs, which may be at once, or
        after a short time. Attached clients and logging programs are told of the end of output by themselves.
        """
        self.expire()
        self._hold = Hold(self._outputs, readers, over)

    def close_stdin(self) -> None:
        """End the input once its other writers have ended theirs. Idempotent."""
        if self._input_keeper >= 0:
            os.close(self._input_keeper)
            self._input_keeper = -1
        if self.attach_point is not None and self._console < 0:
            self.attach_point.close_stdin()
            self._report_input_end()

    def resize(self, width: int, height: int) -> None:
        """Raises FailedPrecondition without a terminal."""
        if self._console < 0:
            raise FailedPrecondition("process has no terminal")
        pty.set_winsize(self._console, height, width)

    def expire(self) -> None:
        """The process is dead: what it wrote is all that is waited for, even if others hold its streams open.
        Idempotent.
        """
        if self._expired:
            return
        self._expired = True
        if self._console >= 0:
            self._loop.call_later(_TERMINAL_DELAY, self._expire)
        else:
            self._expire()

    def _expire(self) -> None:
        for relay in self._outputs:
            relay.expire()
        if self.attach_point is not None:
            self.attach_point.expire()

    def close(self) -> None:
        """Stop everything; undelivered bytes are lost. Idempotent."""
        self._input_ended = None
        if self._hold is not None:
            self._hold.close()
        self.close_stdin()
        for relay in self._outputs:
            relay.close()
        if self._input is not None:
            self._input.close()
        if self.attach_point is not None:
            self.attach_point.close()
        if self._logger is not None:
            if self._expired:
                self._logger.terminate()
            else:
                self._logger.leave()  # it goes on with the process
        if self._console >= 0:
            os.close(self._console)
            self._console = -1

    def _start_outputs(self, opened: OpenStdio) -> None:
        attached = {}
        for stream in (STDOUT, STDERR):
            source = self._output_source(opened, stream)
            if source < 0:
                continue
            self._unfinished += 1
            if stream in opened.attached:
                attached[stream] = source
                continue
            target = opened.outputs.pop(stream, -1)
            if target < 0:
                target = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            self._outputs.append(self._output_relay(source, target))
        if attached or opened.attach_stdin:
            self._unfinished += bool(attached) - len(attached)
            stdin = self._input_target(opened) if opened.attach_stdin else -1
            self.attach_point = AttachPoint(attached, stdin, self._output_ended, followed=self._followed)

    def _start_input(self, opened: OpenStdio) -> None:
        if opened.input >= 0:
            source, opened.input = opened.input, -1
            self._input = self._input_relay(source, self._input_target(opened))

    def _output_source(self, opened: OpenStdio, stream: int) -> int:
        if self._console < 0:
            return opened.pipes.pop(_PIPE_NAMES[stream], -1)
        return os.dup(self._console) if stream == STDOUT else -1

    def _input_target(self, opened: OpenStdio) -> int:
        return os.dup(self._console) if self._console >= 0 else opened.pipes.pop("stdin")

    def _output_relay(self, source: int, target: int) -> Relay:
        is_fifo = stat.S_ISFIFO(os.fstat(target).st_mode)
        if self._console < 0 and is_fifo:
            return SpliceRelay(source, target, self._output_ended, tells_unread=True, may_grow=True)
        return CopyRelay(source, target, self._output_ended, tells_unread=is_fifo)

    def _input_relay(self, source: int, target: int) -> Relay:
        if stat.S_ISREG(os.fstat(source).st_mode):
            return FileRelay(source, target, self._report_input_end)
        return (SpliceRelay if self._console < 0 else CopyRelay)(source, target, self._report_input_end)

    def _report_input_end(self) -> None:
        ended, self._input_ended = self._input_ended, None
        if ended is not None:
            ended()

    def _output_ended(self) -> None:
        self._unfinished -= 1
        if self._unfinished == 0 and not self._drained.done():
            self._drained.set_result(None)
        if self._hold is not None:
            self._hold.look()
