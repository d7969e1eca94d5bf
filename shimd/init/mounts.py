"""Mounts of the container: made detached, given their attributes, and only then attached, so that nobody sees them
half-made.
"""

from __future__ import annotations

import os
from errno import EPERM
from stat import S_IMODE

from shimd.init.context import Context, StepFailed
from shimd.init.copyup import copy_tree
from shimd.init.handshake import id_map_error
from shimd.init.targets import (
    attach,
    exists_as_directory,
    is_directory,
    open_directory,
    open_file,
    open_ordinary_directory,
    refuse_proc,
)
from shimd.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    FSPICK_EMPTY_PATH,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    OPEN_TREE_CLONE,
    PROC_SUPER_MAGIC,
    fs_log,
    fsconfig_create,
    fsconfig_flag,
    fsconfig_reconfigure,
    fsconfig_string,
    fsmount,
    fsopen,
    fspick,
    mount_setattr,
    open_tree,
    statfs_type,
)
from shimd.linux.path import open_in_root
from shimd.plan import ops

PROC_ROOT_INO = 1

# File systems that the confinement of the container rests on.
_ORDINARY_DIRECTORY = ("proc", "sysfs")

# statvfs(3) flag -> the attribute that a user namespace may have locked.
_LOCKABLE = (
    (os.ST_RDONLY, MOUNT_ATTR_RDONLY),
    (os.ST_NOSUID, MOUNT_ATTR_NOSUID),
    (os.ST_NODEV, MOUNT_ATTR_NODEV),
    (os.ST_NOEXEC, MOUNT_ATTR_NOEXEC),
)
_ATIME = MOUNT_ATTR__ATIME | MOUNT_ATTR_NODIRATIME


def mount(ctx: Context, op: ops.Mount) -> None:
    data = op.data
    if op.fstype == "tmpfs":
        data = _with_mode_of_target(ctx, op.target, data)
    if op.fstype in _ORDINARY_DIRECTORY:
        target = open_ordinary_directory(ctx, op.target, op.fstype)
    else:
        target = open_directory(ctx, op.target)
    try:
        refuse_proc(ctx, target, source_is_proc=op.fstype == "proc")
        label = "" if op.fstype == "mqueue" else op.label
        tree = new_filesystem(op.fstype, op.source, data, op.attr.set, label)
        try:
            if op.copy_up:
                copy_tree(target, tree)
            if op.label and not label:
                os.setxattr(f"/proc/self/fd/{tree}", "security.selinux", op.label.encode())
            attach(ctx, tree, target, op.target)
            for more in op.more:
                apply(tree, more)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def _with_mode_of_target(ctx: Context, target: str, data: tuple[str, ...]) -> tuple[str, ...]:
    """A tmpfs looks like the directory that it covers, unless a mode is asked for."""
    if any(option.startswith("mode=") for option in data):
        return data
    status = exists_as_directory(ctx, target)
    return data if status is None else (f"mode={S_IMODE(status.st_mode):o}", *data)


def new_filesystem(fstype: str, source: str, data: tuple[str, ...], attrs: int, label: str = "") -> int:
    """A detached mount of a new instance; StepFailed carries what the file system says itself."""
    context = fsopen(fstype)
    try:
        if source:
            fsconfig_string(context, "source", source)
        configure(context, data)
        if label:
            fsconfig_string(context, "context", label)
        fsconfig_create(context)
        return fsmount(context, attrs)
    except OSError as e:
        raise _explained(f"make {fstype} file system", e, context) from e
    finally:
        os.close(context)


def configure(context: int, data: tuple[str, ...]) -> None:
    for option in data:
        key, equals, value = option.partition("=")
        if equals:
            fsconfig_string(context, key, value)
        else:
            fsconfig_flag(context, key)


def _explained(attempt: str, error: OSError, context: int) -> StepFailed:
    """With the option that was refused, and what the file system itself says of it."""
    option = f" (option {error.filename})" if error.filename else ""
    log = fs_log(context)
    return StepFailed(attempt + option, error.errno or 0, f"{error.strerror}: {log}" if log else error.strerror or "")


def apply(tree: int, attr: ops.MountAttr) -> None:
    if attr.set or attr.clear or attr.propagation:
        flags = AT_EMPTY_PATH | AT_RECURSIVE if attr.recursive else AT_EMPTY_PATH
        mount_setattr(tree, "", flags, set=attr.set, clear=attr.clear, propagation=attr.propagation)


def bind(ctx: Context, op: ops.Bind) -> None:
    tree = _open_source(ctx, op)
    try:
        if op.id_map and not op.slot:
            _map_ids(ctx, tree, op)
        target = open_directory(ctx, op.target) if is_directory(tree) else open_file(ctx, op.target)
        try:
            refuse_proc(ctx, target, source_is_proc=_is_procfs(tree))
            if op.remount:
                _set_flags(tree, op)
            attach(ctx, tree, target, op.target)
            for more in op.more:
                apply(tree, more)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def _open_source(ctx: Context, op: ops.Bind) -> int:
    if op.slot:
        return ctx.take(op.slot)
    if not op.inside:
        return clone_tree(op.source, recursive=op.recursive)
    source = open_in_root(ctx.root, op.source, os.O_PATH)
    try:
        flags = AT_EMPTY_PATH | OPEN_TREE_CLONE | (AT_RECURSIVE if op.recursive else 0)
        return open_tree(source, "", flags)
    finally:
        os.close(source)


def _map_ids(ctx: Context, tree: int, op: ops.Bind) -> None:
    """By the runtime: it takes rights over the whole file system, which init in a user namespace has not."""
    error = ctx.ask_id_map(tree, op.id_map, recursive=op.map_all)
    if error:
        raise StepFailed(f"map the ids of {op.source} on {op.target}", error, id_map_error(error))


def _is_procfs(tree: int) -> bool:
    return statfs_type(tree) == PROC_SUPER_MAGIC and os.fstat(tree).st_ino == PROC_ROOT_INO


def clone_tree(source: str, *, recursive: bool) -> int:
    return open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0))


def _set_flags(tree: int, op: ops.Bind) -> None:
    """In a user namespace flags of the source are locked: they stay, but being told to clear one is an error."""
    if op.slot:  # by the runtime, for which they were not: a container without its rights is not to profit by that
        _set_unlocked_flags(tree, op)
        return
    try:
        apply(tree, op.attr)
    except OSError as e:
        if e.errno != EPERM:
            raise
        _set_unlocked_flags(tree, op)


def _set_unlocked_flags(tree: int, op: ops.Bind) -> None:
    """The access time mode is locked as a whole."""
    present = os.fstatvfs(tree).f_flag
    locked = sum(attribute for flag, attribute in _LOCKABLE if present & flag)
    changes_atime = op.attr.clear & MOUNT_ATTR__ATIME and op.attr.set & _ATIME != _atime(present)
    if locked & op.explicit_clear or changes_atime:
        attempt = f'error mounting "{op.source}" to rootfs at "{op.target}": clear flags that are locked'
        raise StepFailed(attempt, EPERM, "operation not permitted")
    kept = locked | _ATIME
    apply(tree, op.attr._replace(set=op.attr.set & ~_ATIME, clear=op.attr.clear & ~kept))


def _atime(present: int) -> int:
    """The attributes of an access time mode from the flags of statvfs(3)."""
    directories = MOUNT_ATTR_NODIRATIME if present & os.ST_NODIRATIME else 0
    if present & os.ST_NOATIME:
        return directories | MOUNT_ATTR_NOATIME
    return directories | (MOUNT_ATTR_RELATIME if present & os.ST_RELATIME else MOUNT_ATTR_STRICTATIME)


def remount(ctx: Context, op: ops.Remount) -> None:
    fd = open_in_root(ctx.root, op.target, os.O_PATH)
    try:
        context = fspick(fd, "", FSPICK_EMPTY_PATH)
        try:
            configure(context, op.data)
            fsconfig_reconfigure(context)
        except OSError as e:
            raise _explained(f"reconfigure {op.target}", e, context) from e
        finally:
            os.close(context)
        for attr in (op.attr, *op.more):
            apply(fd, attr)
    finally:
        os.close(fd)
