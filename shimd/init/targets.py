"""Places inside the container's root to mount on: found and made by descriptor, checked after the mount.

The rootfs, and every volume that is mounted into it, is controlled by somebody else, who may rename and replace
directories while this runs. So a target is opened once with RESOLVE_IN_ROOT, the mount goes onto that descriptor, and
then the path is opened again: if it does not lead to the new mount, the directory was moved away meanwhile and the
container is refused (CVE-2021-30465).
"""

from __future__ import annotations

import os
from errno import ELOOP, ENOTDIR
from stat import S_ISDIR

from shimd.init.context import Context, StepFailed
from shimd.linux.mount import (
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    PROC_SUPER_MAGIC,
    mount_id,
    move_mount,
    statfs_type,
)
from shimd.linux.path import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    mkdir_all_in_root,
    open_in_root,
    openat2,
)
from shimd.plan import ops

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
_MAX_LINKS = 40


def open_directory(ctx: Context, path: str) -> int:
    """An O_PATH descriptor of the directory, made with its parents when missing."""
    return mkdir_all_in_root(ctx.root, path, DIRECTORY_MODE)


def open_plain_directory(ctx: Context, path: str) -> int:
    """As ``open_directory``, without following any link: OSError ELOOP or ENOTDIR."""
    flags, resolve = os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
    try:
        return openat2(ctx.root, path, flags, resolve=resolve)
    except FileNotFoundError:
        os.close(mkdir_all_in_root(ctx.root, path, DIRECTORY_MODE))
    return openat2(ctx.root, path, flags, resolve=resolve)


def open_file(ctx: Context, path: str) -> int:
    """An O_PATH descriptor of what is at ``path``; an empty file is made, with its parents, when nothing is."""
    for _ in range(_MAX_LINKS):
        try:
            return open_in_root(ctx.root, path, os.O_PATH)
        except FileNotFoundError:
            path = _make_file(ctx, path)
    raise OSError(ELOOP, os.strerror(ELOOP), path)


def _make_file(ctx: Context, path: str) -> str:
    """Returns ``path``, or for a dangling link the path that it stands for."""
    directory, name = os.path.split(path.rstrip("/"))
    parent = mkdir_all_in_root(ctx.root, directory, DIRECTORY_MODE)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        os.close(openat2(parent, name, flags, mode=FILE_MODE, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS))
    except FileExistsError:
        return os.path.join(directory, os.readlink(name, dir_fd=parent))
    finally:
        os.close(parent)
    return path


def attach(ctx: Context, tree: int, target: int, path: str) -> None:
    """Mount the detached ``tree`` on the descriptor ``target``, which was opened as ``path``, and make sure that it
    is there.
    """
    move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    there = open_in_root(ctx.root, path, os.O_PATH)
    try:
        if mount_id(there) != mount_id(tree):
            raise StepFailed(f"mount on {path}", 0, "the mount point was moved away while it was mounted on")
    finally:
        os.close(there)


def path_inside(ctx: Context, fd: int) -> str:
    """Where a descriptor is, seen from the root; "/" for the root itself. Only before the root is entered."""
    root = os.readlink(f"/proc/self/fd/{ctx.root}")
    path = os.readlink(f"/proc/self/fd/{fd}")
    prefix = root.rstrip("/") + "/"
    if path == root:
        return "/"
    if not path.startswith(prefix):
        raise StepFailed(f"mount on {path}", 0, "outside of the rootfs")
    return path[len(prefix) - 1 :]


def refuse_proc(ctx: Context, target: int, *, source_is_proc: bool) -> None:
    """Nothing but procfs may be mounted on /proc, and only known files below it (CVE-2019-16884, CVE-2019-19921)."""
    path = path_inside(ctx, target)
    if path == "/":
        raise StepFailed("mount on /", 0, "the rootfs itself cannot be a mount destination")
    if path == "/proc":
        if not source_is_proc:
            raise StepFailed(f"mount on {path}", 0, f'"{path}" cannot be mounted because it is not of type proc')
    elif (path.startswith("/proc/") or statfs_type(target) == PROC_SUPER_MAGIC) and path not in ops.PROC_FILES:
        raise StepFailed(f"mount on {path}", 0, f'"{path}" cannot be mounted because it is inside /proc')


def open_ordinary_directory(ctx: Context, path: str, fstype: str) -> int:
    """For file systems that the container's security rests on: no part of the path is a link (CVE-2019-19921,
    CVE-2023-27561).
    """
    try:
        return open_plain_directory(ctx, path)
    except OSError as e:
        if e.errno in (ELOOP, ENOTDIR):
            text = f'filesystem "{fstype}" must be mounted on ordinary directory'
            raise StepFailed(f"mount {fstype} on {path}", e.errno, text) from e
        raise


def is_directory(fd: int) -> bool:
    return S_ISDIR(os.fstat(fd).st_mode)


def exists_as_directory(ctx: Context, path: str) -> os.stat_result | None:
    """The status of an existing directory at ``path``."""
    try:
        fd = openat2(ctx.root, path, os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
