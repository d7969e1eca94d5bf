"""A private containerd with its own root, state, sockets and settings, and the shim that it runs.

That is shimd's; with RUNTIME=runc it is runc's, which proves the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.containerd import image
from tests.containerd.peers import Peer
from tests.support import session, wait
from tests.support.daemon import Daemon
from tests.support.leaks import cgroup_mount_points

IS_RUNC = os.environ.get("RUNTIME", "shimd") == "runc"
RUNTIME = "io.containerd.runc.v2" if IS_RUNC else "io.containerd.shimd.v2"
LAUNCHER = Path(sys.executable).parent / "containerd-shim-shimd-v2"
NAMESPACE = f"{session.TAG}-containerd"

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
  address = "{folder}/containerd.sock"
"""


class Containerd:
    """containerd with a daemon of shimd that the launcher finds by its settings. Use as a context manager."""

    has_daemon = not IS_RUNC
    starter: Sequence[str] = ()  # a command that becomes containerd

    def __init__(self, folder: Path, peer: Peer) -> None:
        self.folder = folder
        self.peer = peer
        self.address = str(folder / "containerd.sock")
        self.log = folder / "containerd.log"
        self.process: subprocess.Popen[bytes] | None = None
        run = folder / "shimd"
        self.daemon = Daemon(run, config=f'socket = "{run}/run/shimd.sock"\nstate = "{run}/state"\n')
        self.environment = {
            **os.environ,
            "PATH": f"{LAUNCHER.parent}:{peer.folder}:{os.environ['PATH']}",
            "SHIMD_CONFIG": str(self.daemon.config),
            "SHIMD_LOG": str(self.daemon.log),
            "CONTAINERD_ADDRESS": self.address,
            "CONTAINERD_NAMESPACE": NAMESPACE,
        }
        (folder / "config.toml").write_text(self.settings())

    def settings(self) -> str:
        return _CONFIG.format(folder=self.folder)

    def __enter__(self) -> Self:
        try:
            # Any runtime makes it and leaves it: it is not a test's.
            for point in cgroup_mount_points():
                os.makedirs(f"{point}/{NAMESPACE}", exist_ok=True)
            if self.has_daemon:
                self.daemon.start()
            self.start()
            self.import_images()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            print(f"the end of containerd's log:\n{self.log_tail()}", file=sys.stderr)
        self.close()

    def import_images(self) -> None:
        self.ctr("images", "import", str(image.build(self.folder)))

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def start(self) -> None:
        """Returns when ``ctr`` gets an answer."""
        program = self.peer.program("containerd")
        command = [*self.starter, program, "--config", str(self.folder / "config.toml")]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd="/"
            )
        self._await_answer()

    def _await_answer(self) -> None:
        """``ctr version`` waits itself for the socket; it fails while the file is not there."""
        for _ in range(200):
            done = self.try_ctr("version")
            if done.returncode == 0:
                return
            assert self.process is not None
            assert self.process.poll() is None, f"containerd ended:\n{self.log_tail()}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
        raise AssertionError(f"containerd does not answer: {done.stderr}\n{self.log_tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Containers go on."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(wait.SECONDS)
        self.process = None

    def command(self, *arguments: str) -> list[str]:
        return [self.peer.program("ctr"), *arguments]

    def try_ctr(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,  # where busybox.tar is
            timeout=60,
            check=False,
        )

    def ctr(self, *arguments: str, stdin: str = "") -> str:
        """Its standard output; fails with what it says, and what containerd's log says."""
        done = self.try_ctr(*arguments, stdin=stdin)
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {done.returncode}\n{done.stderr}\n{self.log_tail()}"
        return done.stdout

    def run(self, name: str, *command: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return self.try_ctr(*self.run_arguments(name, *command, flags=flags))

    def run_arguments(self, name: str, *command: str, flags: Sequence[str] = ()) -> list[str]:
        return ["run", "--runtime", RUNTIME, *flags, image.NAME, name, *command]

    def detached(self, name: str, *command: str, flags: Sequence[str] = ()) -> None:
        self.ctr(*self.run_arguments(name, *command, flags=("-d", *flags)))

    def tasks(self) -> dict[str, tuple[int, str]]:
        """By container: pid and status."""
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        return {name: (int(pid), status) for name, pid, status in rows}

    def await_stopped(self, name: str) -> None:
        """The end of the task's process, and that containerd knows of it."""
        deadline = time.monotonic() + wait.SECONDS
        pid, status = self.tasks()[name]
        if status != "STOPPED":
            wait.process_gone(pid)
        while self.tasks()[name][1] != "STOPPED":
            assert time.monotonic() < deadline, f"{name} does not stop:\n{self.log_tail()}"

    def remove(self, name: str) -> None:
        """Whatever state it is in."""
        self.try_ctr("tasks", "kill", "--signal", "KILL", name)
        self.try_ctr("tasks", "delete", "--force", name)
        self.ctr("containers", "rm", name)

    def remove_all(self) -> None:
        for name in self.ctr("containers", "ls", "-q").split():
            self.remove(name)

    def close(self) -> None:
        """End containerd and the daemon."""
        try:
            if self.process is not None:
                self.remove_all()
        finally:
            if self.process is not None:
                self.stop()
            self.end_daemon()
        for point in cgroup_mount_points():
            with contextlib.suppress(OSError):  # what is in it the leak check reports
                os.rmdir(f"{point}/{NAMESPACE}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def end_daemon(self) -> None:
        """And its keeper. One that a launcher started is not our child."""
        if self.daemon.process is None and (pid := self.daemon_pid()):
            os.kill(pid, signal.SIGTERM)
            wait.process_gone(pid)
            self.daemon.end_keeper()
        else:
            self.daemon.close()

    def daemon_pid(self) -> int:
        """Of the daemon that has the state directory; 0 without one."""
        try:
            pid = int((self.daemon.state / "lock").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if os.path.exists(f"/proc/{pid}") else 0
