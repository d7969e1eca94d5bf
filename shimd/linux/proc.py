"""/proc: a procfs that is known to be one, and its files as values."""

from __future__ import annotations

import errno
import os

from shimd.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    PROC_SUPER_MAGIC,
    fsconfig_create,
    fsconfig_string,
    fsmount,
    fsopen,
    statfs_type,
)
from shimd.linux.path import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from shimd.records import Record

_PROC_ROOT_INO = 1


class ProcStat(Record):
    """``state`` is the letter of proc_pid_stat(5), ``starttime`` is in clock ticks since boot: with the pid it
    identifies a process.
    """

    state: str
    starttime: int


class MountInfo(Record):
    """One line of proc_pid_mountinfo(5), unescaped."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: str
    tags: tuple[str, ...]
    fstype: str
    source: str
    super_options: str


def stat(pid: int) -> ProcStat:
    """FileNotFoundError or ProcessLookupError when there is no such process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return ProcStat(fields[0].decode(), int(fields[19]))


def open_verified_procfs(*, subset_pid: bool = True) -> int:
    """A descriptor of the root of the procfs of the caller's pid namespace, that nobody can have mounted something
    over.

    With ``subset_pid`` it holds process directories only; without, also /proc/sys. Where a new instance is refused (a
    user namespace without a full view of /proc), the one at /proc is used after checking that it is procfs's root:
    open what is below with ``open_below``.
    """
    try:
        return _new_procfs(subset_pid=subset_pid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS):
            raise
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if statfs_type(fd) != PROC_SUPER_MAGIC or os.fstat(fd).st_ino != _PROC_ROOT_INO:
        os.close(fd)
        raise OSError(errno.EXDEV, "not a procfs", "/proc")
    return fd


def _new_procfs(*, subset_pid: bool) -> int:
    context = fsopen("proc")
    try:
        if subset_pid:
            fsconfig_string(context, "subset", "pid")
        fsconfig_create(context)
        return fsmount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    finally:
        os.close(context)


def open_below(proc_fd: int, path: str, flags: int) -> int:
    """Open below a procfs, refusing links and whatever is mounted over a part of it. ``path`` is relative; not
    "self/…", which is a link.
    """
    return openat2(proc_fd, path, flags, resolve=RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)


def cgroup_paths(pid: int | str) -> dict[str, str]:
    """Controllers as in proc_pid_cgroup(5) ("cpu,cpuacct", "name=systemd", "" for the unified one) to the path;
    ``pid`` may be "self".
    """
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {controllers: path for _, controllers, path in lines}


def mountinfo(pid: int | str = "self") -> list[MountInfo]:
    """In the order of mounting: a later entry on the same mount point covers an earlier one."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())


def parse_mountinfo(data: bytes) -> list[MountInfo]:
    return [_parse_line(line.split(b" ")) for line in data.splitlines() if line]


def _parse_line(fields: list[bytes]) -> MountInfo:
    dash = fields.index(b"-", 6)
    _, _, device, root, mount_point, options, *rest = (_unescape(field) for field in fields)
    tags, after = rest[: dash - 6], rest[dash - 5 :]
    ids = int(fields[0]), int(fields[1])
    return MountInfo(*ids, device, root, mount_point, options, tuple(tags), after[0], after[1], after[2])


def _unescape(field: bytes) -> str:
    """Blanks and backslashes are written as three octal digits."""
    if b"\\" not in field:
        return os.fsdecode(field)
    head, *parts = field.split(b"\\")
    return os.fsdecode(head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in parts))
