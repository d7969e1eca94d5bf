"""The standard streams: the slots that the runtime passed, or a pty of the container's devpts."""

from __future__ import annotations

import os
from _socket import socket
from errno import EINVAL, ENOENT, EPERM, EROFS
from stat import S_IFREG, S_ISCHR

from shimd.contexts import suppress
from shimd.init.context import Context, StepFailed
from shimd.init.handshake import encode_console
from shimd.init.rootfs import open_dev_null
from shimd.init.targets import attach
from shimd.linux import fdpass, pty
from shimd.linux.mount import AT_EMPTY_PATH, DEVPTS_SUPER_MAGIC, OPEN_TREE_CLONE, open_tree, statfs_type
from shimd.linux.path import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, open_in_root, openat2
from shimd.plan import ops

_PTMX = os.makedev(5, 2)
_DEV_NULL = os.makedev(1, 3)
_PTS_MAJORS = range(136, 144)
_STREAMS = ("stdin", "stdout", "stderr")


def open_terminal(ctx: Context, op: ops.Terminal) -> None:
    master = _open_ptmx(ctx)
    pty.unlockpt(master)
    slave = pty.open_peer(master)
    _verify_slave(slave)
    if op.console_device:
        _mount_console(ctx, slave)
    if op.rows or op.columns:
        pty.set_winsize(slave, op.rows, op.columns)
    os.fchown(slave, op.uid, -1)
    _send_master(ctx, master, f"/dev/pts/{pty.ptsname_index(master)}")
    os.close(master)
    for fd in range(3):
        os.dup2(slave, fd)
    os.close(slave)
    ctx.has_terminal = True
    if not ctx.staged:
        pty.set_controlling_terminal(0)


def _open_ptmx(ctx: Context) -> int:
    """Looked at before it is opened: an image could have any device, or a pipe, at this place (CVE-2025-52565)."""
    path = "/dev/pts/ptmx"
    _verify_ptmx(open_in_root(ctx.root, path, os.O_PATH), path, close=True)
    master = open_in_root(ctx.root, path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    _verify_ptmx(master, path, close=False)
    os.set_blocking(master, True)
    return master


def _verify_ptmx(fd: int, path: str, *, close: bool) -> None:
    status = os.fstat(fd)
    genuine = S_ISCHR(status.st_mode) and status.st_rdev == _PTMX and statfs_type(fd) == DEVPTS_SUPER_MAGIC
    if close or not genuine:
        os.close(fd)
    if not genuine:
        raise StepFailed(f"open {path}", 0, "it is not the pty multiplexer of a devpts file system")


def _verify_slave(fd: int) -> None:
    status = os.fstat(fd)
    genuine = S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _PTS_MAJORS
    if not genuine or statfs_type(fd) != DEVPTS_SUPER_MAGIC:
        raise StepFailed("open the terminal", 0, "the peer of the pty is not on a devpts file system")


def _mount_console(ctx: Context, slave: int) -> None:
    parent = openat2(ctx.root, "/dev", os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    try:
        with suppress(FileExistsError):  # then it is mounted over, whatever it is
            os.mknod("console", S_IFREG | 0o600, dir_fd=parent)
        target = openat2(parent, "console", os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    finally:
        os.close(parent)
    tree = open_tree(slave, "", AT_EMPTY_PATH | OPEN_TREE_CLONE)
    attach(ctx, tree, target, "/dev/console")
    os.close(target)
    os.close(tree)


def _send_master(ctx: Context, master: int, name: str) -> None:
    if "console" in ctx.slots:
        channel = socket(fileno=ctx.take("console"))
        fdpass.send(channel, name.encode(), [master])
        channel.close()
    else:
        channel = socket(fileno=ctx.channel)
        fdpass.send(channel, encode_console(), [master])
        channel.detach()


def set_up_stdio(ctx: Context, op: ops.Stdio) -> None:
    null = _container_null(ctx)
    fds = [ctx.slots.pop(name, -1) for name in _STREAMS]
    sources = [null if fd < 0 or (_is_null(fd) and null >= 0) else fd for fd in fds]
    for number, source in enumerate(sources):
        if source < 0 and _is_null(number):  # the launcher's own serves when the container has spoilt its
            sources[number] = number
    if -1 in sources:
        raise StepFailed("open /dev/null", ENOENT)
    for number, source in enumerate(sources):
        os.dup2(source, number)
        if source != null:
            _give_to(number, op.uid)
    for fd in {null, *fds}:
        if fd > 2:
            os.close(fd)


def _container_null(ctx: Context) -> int:
    """-1 when the container has none; then it keeps what it was given. Looked at before it is opened, since opening
    anything else may do harm, and after, since a process of the container could have put something else there.
    """
    try:
        os.close(open_dev_null(ctx))
        fd = open_in_root(ctx.root, "/dev/null", os.O_RDWR | os.O_NONBLOCK)
    except (OSError, StepFailed):
        return -1
    if _is_null(fd):
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    return -1


def _is_null(fd: int) -> bool:
    status = os.fstat(fd)
    return S_ISCHR(status.st_mode) and status.st_rdev == _DEV_NULL


def _give_to(fd: int, uid: int) -> None:
    """The process may open /proc/self/fd/1 again, which checks the owner. Not the null device: it is the host's."""
    status = os.fstat(fd)
    if status.st_uid == uid or _is_null(fd):
        return
    try:
        os.fchown(fd, uid, -1)
    except OSError as e:
        if e.errno not in (EPERM, EROFS, EINVAL):
            raise
