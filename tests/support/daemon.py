"""A private daemon with its own socket, state folder and keeper; stopping it proves that all of it is gone."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.support import wait
from tests.support.client import Client
from tests.support.ttrpc import TtrpcClient

ROOT = Path(__file__).parents[2]


class DaemonDied(AssertionError):
    """The daemon ended before it was ready, or badly; the message has the end of its log."""


class Daemon:
    """``shimd`` as systemd would run it: readiness comes over $NOTIFY_SOCKET. Use as a context manager."""

    def __init__(self, folder: Path, *, config: str = "", arguments: Sequence[str] = ()) -> None:
        self.folder = folder
        self.socket = str(folder / "run" / "shimd.sock")
        self.ttrpc = str(folder / "run" / "shimd.ttrpc.sock")
        self.state = folder / "state"
        self.log = folder / "log"
        self.config = folder / "config.toml"
        self._arguments = arguments
        folder.mkdir(mode=0o755, exist_ok=True)
        self.config.write_text(f'{config}\n[runtime]\nseccomp_cache = "{folder}/seccomp"\n')
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = -1
        self._listener: socket.socket | None = None

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"the end of the daemon's log:\n{self.log_tail()}", file=sys.stderr)
        self.close()

    def client(self, *, namespace: str = "default") -> Client:
        return Client(self.socket, namespace=namespace)

    def ttrpc_client(self, *, namespace: str = "default") -> TtrpcClient:
        return TtrpcClient(self.ttrpc, namespace=namespace)

    def start(self) -> None:
        """Returns when the daemon has reported READY=1; may be called again after stop or kill."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(notify))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
            )
        self.pid = self.process.pid
        try:
            self._await_ready(self._listener)
        except BaseException:
            self.kill()
            self.end_keeper()
            raise

    def _command(self) -> list[str]:
        paths = ["--socket", self.socket, "--state", str(self.state), "--config", str(self.config)]
        return [sys.executable, "-m", "shimd.daemon", *paths, *self._arguments]

    def _await_ready(self, listener: socket.socket) -> None:
        """Until READY=1, or the end of the daemon: whichever comes first."""
        pidfd = os.pidfd_open(self.pid)
        try:
            while True:
                wait.any_readable((listener.fileno(), pidfd), what=f"READY=1 of the daemon\n{self.log_tail()}")
                if wait.is_readable(listener.fileno()):
                    if b"READY=1" in listener.recv(4096).split(b"\n"):
                        return
                elif wait.is_readable(pidfd):
                    raise DaemonDied(f"the daemon ended before it was ready:\n{self.log_tail()}")
        finally:
            os.close(pidfd)

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def stop(self) -> None:
        """SIGTERM: the ordered end. Containers and the keeper go on. Fails on any exit code but 0."""
        code = self._end(signal.SIGTERM)
        if code != 0:
            raise DaemonDied(f"the daemon ended with {code} on SIGTERM:\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL: the crash."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None, "the daemon is not running"
        assert self._listener is not None
        process, self.process = self.process, None
        try:
            return self._await_end(process, number)
        finally:
            self._listener.close()

    def _await_end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> int:
        process.send_signal(number)
        try:
            return process.wait(wait.SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler, if it is on, writes the stacks to the log
            process.kill()
            process.wait()
            raise DaemonDied(f"the daemon did not end on {number.name}:\n{self.log_tail()}") from None

    def keeper_pid(self) -> int:
        """The pid of the keeper, as the kernel knows the owner of its socket; 0 when there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(str(self.state / "keeper.sock"))
            except (FileNotFoundError, ConnectionRefusedError):
                return 0
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def close(self) -> None:
        """Stop what runs and end the keeper. Containers that a test left are the leak check's to report."""
        try:
            if self.process is not None:
                self.stop()
        finally:
            self.end_keeper()

    def end_keeper(self) -> None:
        pid = self.keeper_pid()
        if pid == 0:
            return
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            wait.exited(pidfd, what="the end of the keeper on SIGTERM")
        finally:
            os.close(pidfd)
