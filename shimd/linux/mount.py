"""Mounts: the descriptor-based calls (open_tree, fsopen, fsmount, move_mount, mount_setattr), and mount(2) where they
have no equal.

All descriptors are close-on-exec. A detached mount goes away with its descriptor when it was not attached.
"""

from __future__ import annotations

import errno
import os
import struct

from shimd.linux._libc import NR, blocking_syscall, buffer, encode, syscall

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_SYMLINKS = 0x01
MOVE_MOUNT_F_AUTOMOUNTS = 0x02
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_AUTOMOUNTS = 0x20
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOVE_MOUNT_SET_GROUP = 0x100
MOVE_MOUNT_BENEATH = 0x200

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

TMPFS_MAGIC = 0x01021994
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
OVERLAYFS_SUPER_MAGIC = 0x794C7630
NSFS_MAGIC = 0x6E736673
DEVPTS_SUPER_MAGIC = 0x1CD1
EXT4_SUPER_MAGIC = 0xEF53

STATX_MNT_ID = 0x1000
STATX_ATTR_MOUNT_ROOT = 0x2000

_MOUNT_ATTR = struct.Struct("=4Q")
_STATX_SIZE = 256
_STATX_ATTRIBUTES = 8
_STATX_MNT_ID = 144
_STATFS_SIZE = 120


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """An O_PATH descriptor of an existing mount point, or with OPEN_TREE_CLONE (and AT_RECURSIVE) of a detached copy
    of its mount.
    """
    return syscall(NR["open_tree"], dirfd, encode(path), flags | OPEN_TREE_CLOEXEC, path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach a detached mount, or move an attached one; an empty path with MOVE_MOUNT_[FT]_EMPTY_PATH is the
    descriptor itself.
    """
    syscall(
        NR["move_mount"], from_fd, encode(from_path), to_fd, encode(to_path), flags, path=to_path or from_path or None
    )


def fsopen(fstype: str) -> int:
    """A file system context; ENODEV when the kernel has no such file system."""
    return syscall(NR["fsopen"], encode(fstype), FSOPEN_CLOEXEC, path=fstype)


def fspick(dirfd: int, path: str, flags: int) -> int:
    """A context to reconfigure the superblock of an existing mount."""
    return syscall(NR["fspick"], dirfd, encode(path), flags | FSPICK_CLOEXEC, path=path)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    syscall(NR["fsconfig"], fd, FSCONFIG_SET_STRING, encode(key), encode(value), 0, path=f"{key}={value}")


def fsconfig_flag(fd: int, key: str) -> None:
    syscall(NR["fsconfig"], fd, FSCONFIG_SET_FLAG, encode(key), None, 0, path=key)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    syscall(NR["fsconfig"], fd, FSCONFIG_SET_FD, encode(key), None, value, path=key)


def fsconfig_create(fd: int) -> None:
    """May wait for the disk or the network: file systems read their superblock here."""
    blocking_syscall(NR["fsconfig"], fd, FSCONFIG_CMD_CREATE, None, None, 0)


def fsconfig_reconfigure(fd: int) -> None:
    blocking_syscall(NR["fsconfig"], fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0)


def fsmount(fd: int, attrs: int) -> int:
    """A detached mount of the created file system with MOUNT_ATTR_* ``attrs``."""
    return syscall(NR["fsmount"], fd, FSMOUNT_CLOEXEC, attrs)


def fs_log(fd: int) -> str:
    """The messages that the file system left in its context, such as "e tmpfs: Bad value for 'size'"; "" when there
    are none.
    """
    lines = []
    while True:
        try:
            lines.append(os.read(fd, 4096).decode(errors="replace").strip())
        except OSError:  # ENODATA: the log is empty
            return "; ".join(lines)


def mount_setattr(
    dirfd: int, path: str, flags: int, *, set: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = -1
) -> None:
    """``set`` and ``clear`` are MOUNT_ATTR_*; changing the access time mode clears MOUNT_ATTR__ATIME. AT_RECURSIVE
    works on the tree.
    """
    attr = _MOUNT_ATTR.pack(set, clear, propagation, max(userns_fd, 0))
    syscall(NR["mount_setattr"], dirfd, encode(path), flags, attr, _MOUNT_ATTR.size, path=path or None)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    strings = [None if text is None else encode(text) for text in (source, fstype, data)]
    blocking_syscall(NR["mount"], strings[0], encode(target), strings[1], flags, strings[2], path=target)


def umount2(path: str, flags: int) -> None:
    """May wait for the disk: the last unmount of a file system writes it back."""
    blocking_syscall(NR["umount2"], encode(path), flags, path=path)


def pivot_root(new: str, old: str) -> None:
    """(".", ".") stacks the old root on the new one, see pivot_root(2)."""
    syscall(NR["pivot_root"], encode(new), encode(old), path=new)


def statfs_type(fd: int) -> int:
    """The magic number of the file system; works on O_PATH descriptors."""
    out = buffer(bytes(_STATFS_SIZE))
    syscall(NR["fstatfs"], fd, out)
    return int.from_bytes(out.raw[:8], "little")


def _statx(fd: int, path: str, mask: int) -> bytes:
    out = buffer(bytes(_STATX_SIZE))
    flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
    syscall(NR["statx"], fd, encode(path), flags, mask, out, path=path or None)
    return out.raw


def mount_id(fd: int) -> int:
    """The id of the mount that the descriptor is on, as in mountinfo."""
    return int.from_bytes(_statx(fd, "", STATX_MNT_ID)[_STATX_MNT_ID : _STATX_MNT_ID + 8], "little")


def is_mount_root(fd: int) -> bool:
    """Whether the descriptor is the root of a mount (statx(2), STATX_ATTR_MOUNT_ROOT)."""
    attributes = int.from_bytes(_statx(fd, "", 0)[_STATX_ATTRIBUTES : _STATX_ATTRIBUTES + 8], "little")
    return bool(attributes & STATX_ATTR_MOUNT_ROOT)


def is_mount_point(path: str) -> bool:
    """False for a path that does not exist."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    try:
        return is_mount_root(fd)
    finally:
        os.close(fd)
