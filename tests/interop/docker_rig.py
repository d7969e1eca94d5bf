"""A private dockerd with its containerd: own folders, sockets, cgroup parent and networks; ended, nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.containerd import peers
from tests.interop.dockers import BIN, Setup
from tests.support import leaks, session, wait
from tests.support.daemon import Daemon
from tests.support.rootfs import busybox_rootfs

IMAGE = "busybox"
SETTINGS = '{"live-restore": true}'
PARENT = f"{session.TAG}-docker"
IS_SYSTEMD = os.environ.get("LAB_VM") == "systemd"

_CONTAINERD = """\
version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/containerd.sock"
"""


def shims() -> set[int]:
    """runc's shims of this test run: each outlives its container by more than a second."""
    return {int(line.split()[0]) for line in leaks.marked_processes() if line.endswith(" containerd-shim")}


def await_shims_gone() -> None:
    for pid in shims():
        wait.process_gone(pid)


class Docker:
    """dockerd, a containerd for it and, where the setup has one, a daemon of shimd. Use as a context manager."""

    def __init__(self, folder: Path, setup: Setup, *, arguments: Sequence[str] = (), settings: str = SETTINGS) -> None:
        self.folder = folder
        self.setup = setup
        self.engine = setup.engine()
        self.socket = folder / "docker.sock"
        self.log = folder / "dockerd.log"
        self.containerd_log = folder / "containerd.log"
        self.dockerd: subprocess.Popen[bytes] | None = None
        self.containerd: subprocess.Popen[bytes] | None = None
        self.shimd: Daemon | None = None
        self._arguments = arguments
        run = folder / "shimd"
        if setup.has_daemon:
            self.shimd = Daemon(run, config=f'socket = "{run}/run/shimd.sock"\nstate = "{run}/state"\n')
        self._peer = peers.find(setup.containerd)
        self.environment = {
            **os.environ,
            "PATH": f"{folder}/bin:{BIN}:{self._peer.folder}:{os.environ['PATH']}",
            "SHIMD_CONFIG": f"{run}/config.toml",
            "SHIMD_LOG": f"{run}/log",
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(folder / "client"),
        }
        self._prepare(settings)

    def _prepare(self, settings: str) -> None:
        (self.folder / "containerd.toml").write_text(_CONTAINERD.format(folder=self.folder))
        (self.folder / "daemon.json").write_text(settings)
        (self.folder / "bin").mkdir()
        for name, program in self.setup.links:
            (self.folder / "bin" / name).symlink_to(program)

    def __enter__(self) -> Docker:
        try:
            # Any runtime makes it and leaves it: it is not a test's.
            for point in leaks.cgroup_mount_points():
                os.makedirs(f"{point}/{PARENT}", exist_ok=True)
            if self.shimd is not None:
                self.shimd.start()
            self.start_containerd()
            self.start()
            self.import_image()
        except BaseException as error:
            error.add_note(self.log_tails())
            self.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            print(self.log_tails(), file=sys.stderr)
        self.close()

    def log_tails(self, lines: int = 30) -> str:
        logs = [self.log, self.containerd_log, *([self.shimd.log] if self.shimd else [])]
        return "\n".join(
            f"the end of {log.name}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in logs
            if log.exists()
        )

    def start_containerd(self) -> None:
        """Without waiting: dockerd waits for it."""
        command = [self._peer.program("containerd"), "--config", str(self.folder / "containerd.toml")]
        with open(self.containerd_log, "ab") as log:
            self.containerd = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd="/"
            )

    def start(self) -> None:
        """Returns when dockerd has reported READY=1."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            with open(self.log, "ab") as log:
                self.dockerd = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**self.environment, "NOTIFY_SOCKET": str(notify)},
                    cwd="/",
                )
            self._await_ready(self.dockerd, listener)

    def _command(self) -> list[str]:
        folder = self.folder
        return [
            self.engine.dockerd,
            f"--config-file={folder}/daemon.json",
            f"--containerd={folder}/containerd.sock",
            f"--containerd-namespace={PARENT}",
            f"--containerd-plugins-namespace={PARENT}-plugins",
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--pidfile={folder}/docker.pid",
            f"--host=unix://{self.socket}",
            f"--init-path={self.engine.init}",
            *(("--exec-opt=native.cgroupdriver=systemd",) if IS_SYSTEMD else (f"--cgroup-parent=/{PARENT}",)),
            "--iptables=false",
            "--ip-forward=false",
            "--bip=172.30.0.1/24",
            *self.setup.arguments,
            *self._arguments,
        ]

    def _await_ready(self, process: subprocess.Popen[bytes], listener: socket.socket) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            while True:
                wait.any_readable((listener.fileno(), pidfd), seconds=60, what="READY=1 of dockerd")
                if not wait.is_readable(listener.fileno()):
                    raise AssertionError("dockerd ended before it was ready")
                if b"READY=1" in listener.recv(4096).split(b"\n"):
                    return
        finally:
            os.close(pidfd)

    def import_image(self) -> None:
        rootfs = busybox_rootfs(self.folder / "rootfs")
        with tarfile.open(self.folder / "busybox.tar", mode="w") as tar:
            tar.add(rootfs, arcname=".")
        shutil.rmtree(rootfs)
        self("import", "busybox.tar", IMAGE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End dockerd; containers go on (live restore)."""
        process, self.dockerd = self.dockerd, None
        _end(process, number)

    def stop_containerd(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self.containerd = self.containerd, None
        _end(process, number)

    def command(self, *arguments: str) -> list[str]:
        return [self.engine.docker, *arguments]

    def attempt(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``docker ARGUMENT...``, however it ends."""
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

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Its standard output without the last newline; fails with what it says, and what the logs say."""
        done = self.attempt(*arguments, stdin=stdin)
        message = f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{message}\n{self.log_tails()}"
        return done.stdout.removesuffix("\n")

    def run_arguments(self, *arguments: str) -> list[str]:
        """Of ``docker run`` with the runtime; no network unless one is asked for: making a bridge's takes time."""
        network = () if any(word.startswith("--network") for word in arguments) else ("--network", "none")
        return ["run", *self.setup.flags, *network, *arguments]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``docker run --rm``, however it ends."""
        return self.attempt(*self.run_arguments("--rm", *arguments), stdin=stdin)

    def detached(self, name: str, *arguments: str) -> None:
        self(*self.run_arguments("--detach", "--name", name, *arguments))

    def sleeper(self, name: str, *flags: str) -> None:
        """A container that lives until it is removed, and ends at once when it is stopped."""
        self.detached(name, "--init", *flags, IMAGE, "sleep", "1000")

    def inspect(self, name: str, template: str) -> str:
        return self("inspect", "--format", template, name)

    def pid(self, name: str) -> int:
        return int(self.inspect(name, "{{.State.Pid}}"))

    @contextlib.contextmanager
    def removed(self, *names: str) -> Iterator[None]:
        """Remove the containers in the end, whatever state they are in."""
        try:
            yield
        finally:
            self.attempt("rm", "--force", "--volumes", *names)

    def await_event(self, name: str, action: str, *, times: int = 1) -> None:
        """Until the container's event came as often, counted from its creation (dockerd keeps the last 256)."""
        self.await_output(self._events(name), f"{action}\n", times=times)

    def events(self, name: str) -> list[str]:
        """Those of a container up to now."""
        return self(*self._events(name), f"--until={time.time():.9f}").splitlines()

    def _events(self, name: str) -> tuple[str, ...]:
        return ("events", "--since=1", f"--filter=container={name}", "--format={{.Action}}")

    def await_output(self, arguments: Sequence[str], text: str, *, times: int = 1) -> None:
        """Until the command, which may go on for ever, has printed the text as often."""
        deadline = time.monotonic() + wait.SECONDS
        data = b""
        with subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, env=self.environment) as process:
            try:
                assert process.stdout is not None
                while data.count(text.encode()) < times:
                    what = f"{text!r} {times} times from docker {' '.join(arguments)}; so far {data!r}"
                    chunk = wait.read_some(process.stdout.fileno(), seconds=deadline - time.monotonic(), what=what)
                    assert chunk, f"docker {' '.join(arguments)} ended: {data!r}"
                    data += chunk
            finally:
                process.kill()

    def close(self) -> None:
        """End all three, and remove what they made, whatever of it fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._remove_rest)
            if self.shimd is not None:
                stack.callback(self.shimd.close)
            if self.containerd is not None:
                stack.callback(self.stop_containerd)
                stack.callback(await_shims_gone)
            if self.dockerd is not None:
                stack.callback(self.stop)
                stack.callback(self._remove_containers)

    def _remove_containers(self) -> None:
        names = self.attempt("ps", "--all", "--quiet").stdout.split()
        if names:
            self("rm", "--force", "--volumes", *names)

    def _remove_rest(self) -> None:
        """dockerd leaves its bridge's and its data's mounts, runtimes leave the parent of the cgroups."""
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        for point in reversed(points):
            if point.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", point], check=False)
        for point in leaks.cgroup_mount_points():
            with contextlib.suppress(OSError):  # what is in it the leak check reports
                os.rmdir(f"{point}/{PARENT}")
        shutil.rmtree(self.folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    assert process is not None, "it does not run"
    process.send_signal(number)
    try:
        process.wait(wait.SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
