"""The FIFOs that containerd makes for a process's stdio, with the test at the other ends."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from tests.support import wait


class Fifos:
    """stdin, stdout and stderr as FIFOs in ``folder``. The test's ends of the outputs are open from the start.

    Without a writer yet, poll(2) on the reading end reports nothing; it reports the end only once a writer has come
    and gone. So reading may begin before the process is started.
    """

    def __init__(self, folder: Path, *, stdin: bool = False, stderr: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        self.stdin = self._make(folder / "stdin") if stdin else ""
        self.stdout = self._make(folder / "stdout")
        self.stderr = self._make(folder / "stderr") if stderr else ""
        self._out = os.open(self.stdout, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._err = os.open(self.stderr, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if stderr else -1
        self._in = -1

    @staticmethod
    def _make(path: Path) -> str:
        os.mkfifo(path, 0o600)
        return str(path)

    def __enter__(self) -> Fifos:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_stdin()
        for fd in (self._out, self._err):
            if fd >= 0:
                os.close(fd)

    def open_stdin(self) -> int:
        """The writing end; ENXIO until the daemon has opened its own."""
        if self._in < 0:
            self._in = os.open(self.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(self._in, True)
        return self._in

    def write(self, data: bytes) -> None:
        fd = self.open_stdin()
        while data:
            data = data[os.write(fd, data) :]

    def close_stdin(self) -> None:
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def stdout_fd(self) -> int:
        return self._out

    def read_stdout(self, *, seconds: float = wait.SECONDS) -> bytes:
        """Everything up to the end."""
        return wait.read_to_end(self._out, seconds=seconds)

    def read_stderr(self, *, seconds: float = wait.SECONDS) -> bytes:
        return wait.read_to_end(self._err, seconds=seconds)

    def stdout_until(self, marker: bytes, *, seconds: float = wait.SECONDS) -> bytes:
        return wait.read_until(self._out, marker, seconds=seconds)
