"""A terminal with a program in it, as a person has: type, read, resize, see the modes it is left in."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tests.support import wait


class Terminal:
    """Run ``command`` on a new pty as the leader of a session whose controlling terminal it is."""

    def __init__(
        self, command: Sequence[str], *, rows: int = 24, columns: int = 80, env: Mapping[str, str] | None = None
    ) -> None:
        self.master, slave = os.openpty()
        self._slave = slave  # kept open: the modes can be looked at after the program has ended
        self.resize(rows, columns)
        # setsid(1) becomes the program. Python code in the child (preexec_fn) would need fork(2) in place of vfork(2),
        # and the fork handlers of a test's gRPC client may hang.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, marker: str, *, seconds: float = wait.SECONDS) -> str:
        return wait.read_until(self.master, marker.encode(), seconds=seconds).decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        """Set the size; the kernel sends SIGWINCH to the foreground process group."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        """As from tcgetattr(3): to compare before and after."""
        return termios.tcgetattr(self._slave)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, seconds: float = wait.SECONDS) -> int:
        """The exit code."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            wait.exited(pidfd, seconds=seconds, what=f"the end of {self.process.args!r}")
        finally:
            os.close(pidfd)
        return self.process.wait()
