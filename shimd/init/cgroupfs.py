"""The mount of type cgroup: what a container sees of the cgroup hierarchies, never more than its own part of them."""

from __future__ import annotations

import os
from errno import EBUSY, ENODEV, ENOENT, EPERM

from shimd.init.context import Context, StepFailed
from shimd.init.mounts import apply, clone_tree, new_filesystem
from shimd.init.targets import attach, open_directory, open_ordinary_directory, refuse_proc
from shimd.linux.mount import (
    AT_EMPTY_PATH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    mount_setattr,
    move_mount,
)
from shimd.plan import ops

_QUIET = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


def mount_cgroup1(ctx: Context, op: ops.MountCgroup1) -> None:
    """A tmpfs with a directory per hierarchy, which becomes read-only when all are mounted."""
    target = open_directory(ctx, op.target)
    try:
        refuse_proc(ctx, target, source_is_proc=False)
        top = new_filesystem("tmpfs", "tmpfs", ("mode=755",), _QUIET)
        try:
            for name, *_ in op.hierarchies:
                os.mkdir(name, 0o755, dir_fd=top)
            for name, destination in op.links:
                os.symlink(destination, name, dir_fd=top)
            attach(ctx, top, target, op.target)
            for name, fstype, options, source in op.hierarchies:
                tree = _hierarchy(fstype, options, source, op.attr.set)
                # By the directory that was just made: nobody else has a descriptor of this tmpfs yet.
                move_mount(tree, "", top, name, MOVE_MOUNT_F_EMPTY_PATH)
                for more in op.more:
                    apply(tree, more)
                os.close(tree)
            if op.readonly:
                mount_setattr(top, "", AT_EMPTY_PATH, set=MOUNT_ATTR_RDONLY)
            for more in op.more:
                apply(top, more)
        finally:
            os.close(top)
    finally:
        os.close(target)


def _hierarchy(fstype: str, options: str, source: str, attrs: int) -> int:
    if not source:
        return new_filesystem(fstype, "cgroup", tuple(options.split(",")) if options else (), attrs)
    tree = clone_tree(source, recursive=False)
    mount_setattr(tree, "", AT_EMPTY_PATH, set=attrs)
    return tree


def mount_cgroup2(ctx: Context, op: ops.MountCgroup2) -> None:
    target = open_ordinary_directory(ctx, op.target, "cgroup2")
    try:
        refuse_proc(ctx, target, source_is_proc=False)
        tree = _cgroup2_tree(op)
        try:
            attach(ctx, tree, target, op.target)
            for more in op.more:
                apply(tree, more)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def _cgroup2_tree(op: ops.MountCgroup2) -> int:
    """In a cgroup namespace never the host's tree: without the right to mount one's own, the container's cgroup is
    bound, and when that is not there either the directory stays empty (CVE-2023-25809).
    """
    try:
        return new_filesystem("cgroup2", "cgroup", (), op.attr.set)
    except StepFailed as e:
        if e.errno not in (EPERM, EBUSY, ENODEV) or not op.fallback:
            raise
    try:
        tree = clone_tree(op.fallback, recursive=False)
    except OSError as e:
        if e.errno != ENOENT:
            raise
        return new_filesystem("tmpfs", "cgroup", ("mode=555",), op.attr.set | MOUNT_ATTR_RDONLY)
    mount_setattr(tree, "", AT_EMPTY_PATH, set=op.attr.set)
    return tree
