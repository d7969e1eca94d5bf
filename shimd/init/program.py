"""The last steps before the program: working directory, HOME, the program's path, the start gate, descriptors,
signals, execve.
"""

from __future__ import annotations

import os
from _socket import socket
from errno import EACCES, EISDIR, ENOENT, ENOSYS, EPERM
from fcntl import F_DUPFD_CLOEXEC, F_SETFD, FD_CLOEXEC, fcntl
from stat import S_ISDIR, S_ISREG

from shimd.contexts import suppress
from shimd.init.context import Context, StepFailed
from shimd.init.handshake import CREATED, STARTED
from shimd.linux import process
from shimd.linux.path import open_in_root
from shimd.linux.signals import signal
from shimd.plan import ops

_PASSWD_LIMIT = 1 << 20
_CHUNK = 64 * 1024
_OWN_DESCRIPTORS = 1024
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_OUTSIDE = (
    "current working directory is outside of container mount namespace root -- possible container breakout detected"
)


def change_directory(ctx: Context, op: ops.Chdir) -> None:
    if op.late and not ctx.chdir_again:
        return
    try:
        os.chdir(op.path)
    except OSError as e:
        if op.late or e.errno not in (EACCES, EPERM):
            raise StepFailed.of(f"chdir to cwd ({op.path!r}) set in config.json failed", e) from e
        ctx.chdir_again = True  # root may be kept out of a directory that the user may enter, on network file systems
        return
    # A path like /proc/self/fd/7 could lead out by a descriptor of the host's file system (CVE-2024-21626).
    if not process.getcwd().startswith(b"/"):
        raise StepFailed("", ENOENT, _OUTSIDE)


def find_home(ctx: Context, op: ops.HomeEnv) -> None:
    try:
        ctx.home = _home_of(ctx, str(op.uid).encode()) or "/"
    except OSError:
        ctx.home = "/"


def _home_of(ctx: Context, uid: bytes) -> str:
    """The image wrote this file: no pipe is waited for, and no more read than fits into a small container
    (CVE-2026-47262).
    """
    fd = open_in_root(ctx.root, "/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            return ""
        rest = b""
        for _ in range(_PASSWD_LIMIT // _CHUNK):
            data = os.read(fd, _CHUNK)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines if data else [rest]:
                fields = line.split(b":")
                if len(fields) > 5 and fields[2] == uid:
                    return "" if b"\0" in fields[5] else os.fsdecode(fields[5])
            if not data:
                return ""
    finally:
        os.close(fd)
    return ""


def find_program(ctx: Context, op: ops.FindProgram) -> None:
    ctx.args = op.args
    ctx.env = dict(entry.partition("=")[::2] for entry in op.env)
    if ctx.home and not ctx.env.get("HOME"):
        ctx.env["HOME"] = ctx.home
    name = op.args[0]
    if "/" in name:
        problem = _check_executable(name)
        if problem is not None:
            raise StepFailed("", problem[0], f'exec: "{name}": {problem[1]}')
        ctx.program = name
        return
    # An empty entry means the working directory, which is no place to take programs from by accident.
    for directory in ctx.env.get("PATH", "").split(":"):
        candidate = os.path.join(directory, name)
        if directory.startswith("/") and _check_executable(candidate) is None:
            ctx.program = candidate
            return
    raise StepFailed("", ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _check_executable(path: str) -> tuple[int, str] | None:
    """In the words of Go's os/exec, from which containerd and Docker derive the exit codes 126 and 127."""
    try:
        status = os.stat(path)
    except OSError as e:
        return e.errno or 0, f"stat {path}: {(e.strerror or '').lower()}"
    if S_ISDIR(status.st_mode):
        return EISDIR, "is a directory"
    # Root may "execute" a socket or a device, says access(2); execve(2) does not let it.
    if not S_ISREG(status.st_mode) or not os.access(path, os.X_OK, effective_ids=True):
        return EACCES, "permission denied"
    return None


def wait_for_start(ctx: Context, op: ops.WaitStart) -> None:
    """From here on the container does not depend on the runtime: only ``start`` may come, or a signal."""
    if op.dumpable:
        process.set_dumpable(1)
    if os.getpid() == 1:  # which the kernel spares the signals that it has no handler for
        for number in _ENDING:
            signal.signal(number, _end)
    listener = socket(fileno=ctx.take("start"))
    control, ctx.channel = ctx.channel, -1
    os.write(control, CREATED)
    os.close(control)
    connection, _ = listener._accept()  # type: ignore[attr-defined]  # socket.accept without the socket module
    listener.close()
    ctx.channel, ctx.on_start_gate = connection, True
    try:
        os.write(connection, STARTED)
    except OSError:
        ctx.channel = -1  # whoever started is gone already; the container is started all the same


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)


def close_descriptors(ctx: Context, op: ops.CloseFds) -> None:
    """Everything else is close-on-exec; the channel has to live until execve has succeeded."""
    first = 3 + op.keep
    kept = [fcntl(ctx.take(f"preserve.{index}"), F_DUPFD_CLOEXEC, first) for index in range(op.keep)]
    if op.keep and 0 <= ctx.channel < first:
        ctx.channel = fcntl(ctx.channel, F_DUPFD_CLOEXEC, first)
    for index, fd in enumerate(kept):
        os.dup2(fd, 3 + index)
    try:
        process.close_range(first, process.MAX_FD, process.CLOSE_RANGE_CLOEXEC)
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise
        _close_each_on_exec(first)


def _close_each_on_exec(first: int) -> None:
    """Where a filter that is loaded already refuses close_range(2). Init's own descriptors have low numbers."""
    for fd in range(first, _OWN_DESCRIPTORS):
        with suppress(OSError):
            fcntl(fd, F_SETFD, FD_CLOEXEC)


def reset_signals(ctx: Context, op: ops.ResetSignals) -> None:
    process.reset_ignored_signals()
    if op.death_signal:
        process.set_pdeathsig(op.death_signal)


def execute_program(ctx: Context, op: ops.Execute) -> None:
    """No import, no allocation of note, no other system call: a seccomp filter may be loaded."""
    try:
        os.execve(ctx.program, ctx.args, ctx.env)
    except OSError as e:
        raise StepFailed("", e.errno or 0, f"exec {ctx.program}: {(e.strerror or '').lower()}") from e
