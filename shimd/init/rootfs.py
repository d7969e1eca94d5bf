"""The container's root: prepared, entered, made read-only, parts of it hidden."""

from __future__ import annotations

import os
from errno import EINVAL, EPERM
from stat import S_ISCHR, S_ISDIR

from shimd.init.context import Context, StepFailed
from shimd.init.targets import attach
from shimd.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    OPEN_TREE_CLONE,
    fsconfig_create,
    fsconfig_flag,
    fsconfig_string,
    fsmount,
    fsopen,
    mount_id,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    umount2,
)
from shimd.linux.path import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, mkdir_all_in_root, open_in_root, openat2
from shimd.linux.proc import MountInfo, mountinfo
from shimd.plan import ops

_DEV_NULL = os.makedev(1, 3)
_QUIET = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


def set_propagation(fd: int, path: str, flags: int) -> None:
    """``flags`` is an MS_* propagation type with MS_REC or without."""
    at = (AT_RECURSIVE if flags & MS_REC else 0) | (0 if path else AT_EMPTY_PATH)
    mount_setattr(fd, path, at, propagation=flags & ~MS_REC)


def prepare_root(ctx: Context, op: ops.PrepareRoot) -> None:
    if not op.propagation:  # no mount namespace of our own
        ctx.root = os.open(op.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return
    set_propagation(AT_FDCWD, "/", op.propagation)
    target = _place_of_root(op)
    if not op.propagation & MS_REC or op.propagation & MS_SHARED:
        _part_parent(target, MS_SLAVE if op.propagation & MS_SLAVE else MS_PRIVATE)
    tree = ctx.take(op.slot) if op.slot else open_tree(target, "", AT_EMPTY_PATH | AT_RECURSIVE | OPEN_TREE_CLONE)
    move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    os.close(target)
    ctx.root = tree


def _place_of_root(op: ops.PrepareRoot) -> int:
    """A tree that the runtime has opened may lie where the root of a user namespace must not go. Then it is put on /,
    which hides nothing from us: our own root stays what is beneath.
    """
    try:
        return os.open(op.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if not op.slot:
            raise
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _part_parent(target: int, propagation: int) -> None:
    """pivot_root(2) refuses a shared parent mount, and what is mounted into the rootfs must not reach the host. A slave
    still receives, and so will the rootfs, which is a clone of it.
    """
    own = mount_id(target)
    for mount in mountinfo():
        if mount.mount_id == own:
            if any(tag.startswith("shared:") for tag in mount.tags):
                set_propagation(AT_FDCWD, mount.mount_point, propagation)
            return


def pivot(ctx: Context, op: ops.PivotRoot) -> None:
    if op.method == "pivot":
        _pivot_root(ctx)
    elif op.method == "move":
        _move_root(ctx)
    else:
        _chroot(ctx)


def _pivot_root(ctx: Context) -> None:
    """pivot_root(2), "pivot_root(".", ".")": no directory is needed to put the old root on."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(ctx.root)
    pivot_root(".", ".")
    os.fchdir(old)
    os.close(old)
    # With a shared / the umount would propagate to the host.
    mount_setattr(AT_FDCWD, ".", AT_RECURSIVE, propagation=MS_SLAVE)
    umount2(".", MNT_DETACH)
    os.chdir("/")


def _move_root(ctx: Context) -> None:
    """For a root on a ramdisk, which cannot be pivoted: the host's mounts stay beneath, so the full views of procfs
    and sysfs among them go away first, or the container could mount unmasked ones of its own.
    """
    root = os.readlink(f"/proc/self/fd/{ctx.root}")
    for mount in reversed(mountinfo()):
        if mount.fstype in ("proc", "sysfs") and mount.root == "/" and not _is_below(mount, root):
            _remove_mount(mount.mount_point)
    os.fchdir(ctx.root)
    move_mount(ctx.root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH)
    os.chroot(".")
    os.chdir("/")


def _is_below(mount: MountInfo, root: str) -> bool:
    return mount.mount_point == root or mount.mount_point.startswith(root + "/")


def _remove_mount(path: str) -> None:
    set_propagation(AT_FDCWD, path, MS_SLAVE | MS_REC)
    try:
        umount2(path, MNT_DETACH)
    except OSError as e:
        if e.errno not in (EINVAL, EPERM):  # locked in a user namespace: cover it
            raise
        cover = _empty_tmpfs()
        move_mount(cover, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)
        os.close(cover)


def _chroot(ctx: Context) -> None:
    os.fchdir(ctx.root)
    os.chroot(".")
    os.chdir("/")


def make_directory(ctx: Context, op: ops.MakeDirectory) -> None:
    os.close(mkdir_all_in_root(ctx.root, op.path, op.mode))


def propagate(ctx: Context, op: ops.SetPropagation) -> None:
    set_propagation(AT_FDCWD, "/", op.flags)


def finalize_readonly(ctx: Context, op: ops.FinalizeReadonly) -> None:
    fd = open_in_root(ctx.root, op.target, os.O_PATH)
    try:
        mount_setattr(fd, "", AT_EMPTY_PATH, set=MOUNT_ATTR_RDONLY)
    finally:
        os.close(fd)


def readonly_path(ctx: Context, op: ops.ReadonlyPath) -> None:
    try:
        target = open_in_root(ctx.root, op.path, os.O_PATH)
    except FileNotFoundError:
        return
    try:
        tree = open_tree(target, "", AT_EMPTY_PATH | AT_RECURSIVE | OPEN_TREE_CLONE)
        try:
            mount_setattr(tree, "", AT_EMPTY_PATH, set=MOUNT_ATTR_RDONLY)
            attach(ctx, tree, target, op.path)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def mask_paths(ctx: Context, op: ops.MaskPaths) -> None:
    null = directory = -1
    for path in op.paths:
        try:
            target = open_in_root(ctx.root, path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if S_ISDIR(os.fstat(target).st_mode):
            tree = directory = _next_mask_directory(directory, op.label)
        else:
            null = null if null >= 0 else open_dev_null(ctx)
            tree = open_tree(null, "", AT_EMPTY_PATH | OPEN_TREE_CLONE)
        attach(ctx, tree, target, path)
        os.close(target)
        if tree != directory:
            os.close(tree)
    for fd in (null, directory):
        if fd >= 0:
            os.close(fd)


def _next_mask_directory(attached: int, label: str) -> int:
    """One tmpfs serves all directories: a clone of the mount that the last one got; replaces and closes that
    descriptor.
    """
    if attached < 0:
        return _empty_tmpfs(label)
    tree = open_tree(attached, "", AT_EMPTY_PATH | OPEN_TREE_CLONE)
    os.close(attached)
    return tree


def _empty_tmpfs(label: str = "") -> int:
    """A detached read-only tmpfs with room for nothing."""
    context = fsopen("tmpfs")
    try:
        for option in ("nr_blocks", "nr_inodes"):
            fsconfig_string(context, option, "1")
        fsconfig_flag(context, "ro")
        if label:
            fsconfig_string(context, "context", label)
        fsconfig_create(context)
        return fsmount(context, _QUIET | MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def open_dev_null(ctx: Context) -> int:
    """An O_PATH descriptor of the container's /dev/null, known to be that device: an image could have a link there
    (CVE-2025-31133).
    """
    fd = openat2(ctx.root, "/dev/null", os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    status = os.fstat(fd)
    if not S_ISCHR(status.st_mode) or status.st_rdev != _DEV_NULL:
        os.close(fd)
        raise StepFailed("open /dev/null", 0, "it is not the null device of the kernel")
    return fd
