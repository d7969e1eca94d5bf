"""A process in the foreground: its streams are ours, our signals are its own, and its end is ours.

Without a terminal it has pipes, which we read and write; the descriptors that we were given stay with us, so that the
container cannot do more to them than write through us.
"""

from __future__ import annotations

import os
import select

from shimd.cli.pumps import Pump
from shimd.cli.signals import Enough, SignalProxy
from shimd.contexts import suppress
from shimd.linux import pty
from shimd.runtime.model import NO_STDIO, Stdio
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.cli.notify import Notify
    from shimd.cli.terminal import HostTerminal

_SIGNALLED = 128


class Foreground:
    """Made before the process, so that no signal is lost; closed when all is over."""

    def __init__(self, *, terminal: bool) -> None:
        """Raises InvalidArgument for a terminal where there is none."""
        self._console = -1
        self._terminal = _host_terminal() if terminal else None
        self._signals = SignalProxy()
        self._inside: list[int] = []
        self._pumps: list[Pump] = []
        self._stdin: Pump | None = None
        self._notify: Notify | None = None
        self.stdio = NO_STDIO if terminal else self._make_pipes()

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close_inside()
        for pump in self._pumps:
            pump.end()
        if self._terminal is not None:
            self._terminal.close()
        if self._console >= 0:
            os.close(self._console)

    @property
    def console_size(self) -> tuple[int, int] | None:
        """What the process finds its terminal to have from the start."""
        return None if self._terminal is None else self._terminal.size()

    def follow(self, pid: int, pidfd: int, console: int, notify: Notify | None = None) -> int:
        """Until the process, a child of ours, has ended and its output is out; its exit code. Owns ``console``."""
        self._notify = notify
        self._close_inside()
        if self._terminal is not None:
            self._take_console(console)
        self._signals.forward_to(pidfd, self._resize)
        try:
            self._pump_until_dead(pidfd)
            with suppress(Enough), self._signals.process_is_dead():
                self._pump_rest()
        finally:
            self._signals.close()
        status = self._signals.reaped.get(pid)
        if status is None:
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else _SIGNALLED - code

    # ---- before ----------------------------------------------------------------------------------------------------

    def _make_pipes(self) -> Stdio:
        stdin, our_stdin = self._pipe()
        our_stdout, stdout = self._pipe()
        our_stderr, stderr = self._pipe()
        self._inside = [stdin, stdout, stderr]
        os.set_blocking(our_stdin, False)
        self._stdin = Pump(0, our_stdin, our_stdin)
        self._pumps = [self._stdin, Pump(our_stdout, 1, our_stdout), Pump(our_stderr, 2, our_stderr)]
        return Stdio(stdin, stdout, stderr)

    def _pipe(self) -> tuple[int, int]:
        return os.pipe2(os.O_CLOEXEC)

    def _close_inside(self) -> None:
        while self._inside:
            os.close(self._inside.pop())

    def _take_console(self, console: int) -> None:
        assert self._terminal is not None
        self._console = console
        os.set_blocking(console, False)
        self._stdin = Pump(0, console)
        self._pumps = [self._stdin, Pump(console, 1)]
        self._resize()  # it may have changed since the process was given its size
        self._terminal.set_raw()

    def _resize(self) -> None:
        if self._terminal is not None:
            try:
                pty.set_winsize(self._console, *self._terminal.size())
            except OSError:  # one of the two has been hung up
                return

    # ---- while it runs ---------------------------------------------------------------------------------------------

    def _pump_until_dead(self, pidfd: int) -> None:
        ready: set[int] = set()
        while pidfd not in ready:
            ready = self._step(pidfd, *([] if self._notify is None else [self._notify.fileno()]))
            if self._notify is not None and self._notify.fileno() in ready and self._notify.pass_on(os.getpid()):
                self._notify = None
        if self._stdin is not None:
            self._stdin.end()

    def _pump_rest(self) -> None:
        """What was written and not read yet. A pipe has an end; a pty that something else holds open has not, so there
        it ends when nothing is left to be read.
        """
        while any(not pump.ended for pump in self._pumps):
            full = any(pump.has_data for pump in self._pumps)
            if not self._step(timeout=None if self._terminal is None or full else 0):
                return

    def _step(self, *others: int, timeout: int | None = None) -> set[int]:
        """Wait for something to happen and pump what there is; the descriptors that were ready."""
        events = dict.fromkeys(others, select.POLLIN)
        pumps: dict[int, list[Pump]] = {}
        for pump in self._pumps:
            if not pump.ended:
                fd, wanted = pump.interest()
                events[fd] = events.get(fd, 0) | wanted
                pumps.setdefault(fd, []).append(pump)
        poller = select.poll()
        for fd, wanted in events.items():
            poller.register(fd, wanted)
        ready = {fd for fd, _ in poller.poll(timeout)}
        for fd in ready:
            for pump in pumps.get(fd, ()):  # two of them only on the console, which does not block
                pump.step()
        return ready


def _host_terminal() -> HostTerminal:
    from shimd.cli.terminal import HostTerminal

    return HostTerminal()
