"""Starts the daemon where none runs: apart from containerd in every respect, so that it outlives it."""

from __future__ import annotations

import fcntl
import os
import select
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from clients.containerd_shim.places import Places
from clients.containerd_shim.ttrpc import Connection

READY_SECONDS = 30.0
DEFAULT_LOG = "/var/log/shimd.log"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def connect_or_start(places: Places, seconds: float) -> Connection:
    """Many launchers may run at once: one of them starts the daemon, the others wait for that one. Raises OSError."""
    os.makedirs(places.state, 0o700, exist_ok=True)
    lock = os.open(f"{places.state}/launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return Connection(places.ttrpc_socket, seconds)
        except (FileNotFoundError, ConnectionRefusedError):
            _start(places)
            return Connection(places.ttrpc_socket, seconds)
    finally:
        os.close(lock)


def _start(places: Places) -> None:
    """Returns when the daemon says that it is ready (sd_notify(3)); raises OSError when it ends before that."""
    log = os.environ.get("SHIMD_LOG", DEFAULT_LOG)
    # Not an abstract name: by that every container on the host's network could tell us that the daemon is ready.
    name = f"{places.state}/ready.sock"
    notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        _unlink(name)
        os.fchmod(notify.fileno(), 0o600)  # bind(2) gives the file the mode of the socket
        notify.bind(name)
        pid = os.fork()
        if pid == 0:
            _become_daemon(places, name, log)
        _await_ready(pid, notify, log)
    finally:
        notify.close()
        _unlink(name)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _await_ready(pid: int, notify: socket, log: str) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(notify.fileno(), select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while events := poll.poll(READY_SECONDS * 1000):
            if notify.fileno() not in dict(events):
                raise ChildProcessError(f"shimd did not start: {_last_line(log)}")
            if b"READY=1" in notify.recv(4096).split(b"\n"):
                return
        raise TimeoutError(f"shimd was not ready within {READY_SECONDS:.0f} s; its log is {log}")
    finally:
        os.close(pidfd)


def _last_line(log: str) -> str:
    try:
        with open(log, "rb") as file:
            lines = file.read()[-4096:].decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    return lines[-1] if lines else f"{log} is empty"


def _become_daemon(places: Places, notify: str, log: str) -> None:
    """In the child; never returns."""
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        _redirect(log)
        _leave_cgroups()
        _raise_oom_score()
        arguments = ["--config", places.config] if places.config else []
        environment = {"PATH": os.environ.get("PATH") or DEFAULT_PATH, "NOTIFY_SOCKET": notify}
        os.execve(sys.executable, [sys.executable, "-I", "-m", "shimd.daemon", *arguments], environment)
    except OSError as error:
        os.write(2, f"starting shimd: {error}\n".encode())
    finally:
        os._exit(1)


def _redirect(log: str) -> None:
    """containerd waits for the end of our output, which the daemon must not keep open."""
    null = os.open("/dev/null", os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, output), (2, output)):
        os.dup2(source, target)


def _leave_cgroups() -> None:
    """Into the root of each hierarchy: containerd's own cgroup is killed, or limited, with containerd. Where this may
    not be (in a container, say), the daemon stays.
    """
    with open("/proc/self/cgroup") as file:
        ours = {controllers: path for _, controllers, path in (line.rstrip("\n").split(":", 2) for line in file)}
    for mount_point, options in _hierarchies():
        path = next((path for controllers, path in ours.items() if set(controllers.split(",")) <= options), "/")
        if path != "/":
            try:
                _write(f"{mount_point}/cgroup.procs", "0")
            except OSError as error:
                os.write(2, f"the daemon stays in the cgroup {path}: {error}\n".encode())


def _hierarchies() -> list[tuple[str, set[str]]]:
    """Mount point and the controllers among the mount options; those of cgroup v2 are "" as in /proc/self/cgroup."""
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            place, _, kind = line.rstrip("\n").partition(" - ")
            fstype, _, options = kind.split(" ", 2)
            if fstype in ("cgroup", "cgroup2"):
                found.append((place.split()[4], {""} if fstype == "cgroup2" else set(options.split(","))))
    return found


def _raise_oom_score() -> None:
    """By one above containerd's, as shims do: of the two the kernel had better take us."""
    with open("/proc/self/oom_score_adj") as file:
        score = int(file.read())
    _write("/proc/self/oom_score_adj", str(min(score + 1, 1000)))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
