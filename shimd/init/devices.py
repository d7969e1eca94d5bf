"""Device nodes and the links in /dev. The directory is reached without following any link: with /dev as a link into a
volume, nodes and links would be made, and removed, on the host (CVE-2026-41579, CVE-2026-47766).
"""

from __future__ import annotations

import os
from errno import EPERM
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_ISFIFO

from shimd.init.context import Context, StepFailed
from shimd.init.targets import attach, open_file, open_plain_directory
from shimd.linux.mount import AT_FDCWD, OPEN_TREE_CLONE, open_tree
from shimd.plan import ops

_FORMATS = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}


def make_device(ctx: Context, op: ops.MakeDevice) -> None:
    if op.bind:
        return _bind_device(ctx, op)
    directory, name = os.path.split(op.path)
    parent = open_plain_directory(ctx, directory)
    try:
        _make_node(op, parent, name)
    except OSError as e:
        if e.errno != EPERM or op.kind == "p":
            raise
        _bind_device(ctx, op)
    finally:
        os.close(parent)


def _make_node(op: ops.MakeDevice, parent: int, name: str) -> None:
    mask = os.umask(0)
    try:
        os.mknod(name, _FORMATS[op.kind] | op.mode, os.makedev(op.major, op.minor), dir_fd=parent)
    except FileExistsError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        _refuse_other(op, status)
    finally:
        os.umask(mask)
    if op.uid or op.gid:
        os.chown(name, op.uid, op.gid, dir_fd=parent, follow_symlinks=False)


def _refuse_other(op: ops.MakeDevice, status: os.stat_result) -> None:
    same = S_IFMT(status.st_mode) == _FORMATS[op.kind]
    if not same or (not S_ISFIFO(status.st_mode) and status.st_rdev != os.makedev(op.major, op.minor)):
        raise StepFailed(f"make device {op.path}", 0, "there is a different file already")


def _bind_device(ctx: Context, op: ops.MakeDevice) -> None:
    """Where mknod is not allowed, the host's node serves."""
    tree = open_tree(AT_FDCWD, op.path, OPEN_TREE_CLONE)
    try:
        _refuse_other(op, os.fstat(tree))
        os.close(open_plain_directory(ctx, os.path.dirname(op.path)))
        target = open_file(ctx, op.path)
        attach(ctx, tree, target, op.path)
        os.close(target)
    finally:
        os.close(tree)


def make_symlink(ctx: Context, op: ops.Symlink) -> None:
    if op.only_if and not os.path.exists(op.only_if):
        return
    directory, name = os.path.split(op.path)
    parent = open_plain_directory(ctx, directory)
    try:
        try:
            os.symlink(op.target, name, dir_fd=parent)
        except FileExistsError:
            if op.replace:
                os.unlink(name, dir_fd=parent)
                os.symlink(op.target, name, dir_fd=parent)
    finally:
        os.close(parent)
