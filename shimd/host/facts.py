"""What this machine is and offers, read once into a frozen record that the pure layers can be given."""

from __future__ import annotations

import os

from shimd.linux import caps, proc, seccomp
from shimd.linux.mount import statfs_type
from shimd.records import Record

SELINUX_MAGIC = 0xF97CFF8C
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO

_SECCOMP_FLAGS = (
    ("SECCOMP_FILTER_FLAG_TSYNC", seccomp.SECCOMP_FILTER_FLAG_TSYNC),
    ("SECCOMP_FILTER_FLAG_LOG", seccomp.SECCOMP_FILTER_FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", seccomp.SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_NEW_LISTENER", seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER),
    ("SECCOMP_FILTER_FLAG_TSYNC_ESRCH", seccomp.SECCOMP_FILTER_FLAG_TSYNC_ESRCH),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV),
)


class Hierarchy(Record):
    """A mounted cgroup hierarchy; ``mount_point + own_path`` is the directory of our own cgroup ("/" alone: the root).

    ``controllers`` of v1 are as mounted, such as ("cpu", "cpuacct") or ("name=systemd",).
    """

    controllers: tuple[str, ...]
    mount_point: str
    own_path: str


class HostFacts(Record):
    """``cgroup_mode`` is "v1", "hybrid", "v2", or "none" when nothing is mounted; ``unified`` is None without a
    cgroup2 mount.
    """

    kernel: tuple[int, int]
    release: str
    machine: str
    cgroup_mode: str
    hierarchies: tuple[Hierarchy, ...]
    unified: Hierarchy | None
    apparmor: bool
    selinux: bool
    effective_caps: int
    last_cap: int
    euid: int
    in_userns: bool
    seccomp_actions: tuple[str, ...]  # as in seccomp(2): "kill_process", "errno", …
    seccomp_flags: tuple[str, ...]
    proc_kcore: bool
    systemd: bool
    namespaces: tuple[str, ...]  # as in /proc/self/ns: "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"
    page_size: int
    cpus_online: int
    setgroups_denied: bool = False  # in our user namespace, see user_namespaces(7)
    rootless: bool | None = None  # whether refused accesses to cgroups are no errors; None: as euid and in_userns say

    @property
    def unified_mount(self) -> str:
        return self.unified.mount_point if self.unified else ""

    @property
    def unified_controllers(self) -> tuple[str, ...]:
        return self.unified.controllers if self.unified else ()

    def has_cap(self, number: int) -> bool:
        return bool(self.effective_caps >> number & 1)


def probe() -> HostFacts:
    """About a millisecond; the caller keeps the result."""
    system = os.uname()
    mode, hierarchies, unified = _cgroups()
    return HostFacts(
        kernel=_version(system.release),
        release=system.release,
        machine=system.machine,
        cgroup_mode=mode,
        hierarchies=hierarchies,
        unified=unified,
        apparmor=os.path.exists("/sys/kernel/security/apparmor")
        and _read("/sys/module/apparmor/parameters/enabled") == "Y",
        selinux=_is_filesystem("/sys/fs/selinux", SELINUX_MAGIC),
        effective_caps=caps.capget().effective,
        last_cap=caps.last_cap(),
        euid=os.geteuid(),
        in_userns=_in_userns(),
        seccomp_actions=tuple(_read("/proc/sys/kernel/seccomp/actions_avail").split()),
        seccomp_flags=tuple(text for text, flag in _SECCOMP_FLAGS if seccomp.flag_supported(flag)),
        proc_kcore=os.path.exists("/proc/kcore"),
        systemd=os.path.isdir("/run/systemd/system"),
        namespaces=tuple(sorted(name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children"))),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cpus_online=os.sysconf("SC_NPROCESSORS_ONLN"),
        setgroups_denied=_read("/proc/self/setgroups") == "deny",
    )


def _read(path: str) -> str:
    """ "" for a file that is not there or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _version(release: str) -> tuple[int, int]:
    """The first two numbers of "6.18.44-fc" and its like; 0 for what is none."""
    major, _, rest = release.partition(".")
    minor = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return (int(major), int(minor or 0)) if major.isdecimal() else (0, 0)


def _in_userns() -> bool:
    """By the inode that the initial user namespace always has; its id map says nothing while it is not written."""
    try:
        return os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE
    except FileNotFoundError:  # a kernel without user namespaces
        return False


def _is_filesystem(path: str, magic: int) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return statfs_type(fd) == magic
    finally:
        os.close(fd)


def _cgroups() -> tuple[str, tuple[Hierarchy, ...], Hierarchy | None]:
    own = proc.cgroup_paths("self")
    entries = [entry for entry in _cgroup_mounts() if _is_visible(entry)]
    hierarchies: dict[tuple[str, ...], Hierarchy] = {}
    unified: Hierarchy | None = None
    for entry in entries:
        if entry.fstype == "cgroup2":
            if unified is None or entry.mount_point == "/sys/fs/cgroup":
                unified = _unified(entry, own.get("", "/"))
        else:
            found = _v1(entry, own)
            if found is not None:
                hierarchies.setdefault(found.controllers, found)
    if unified is not None and (unified.mount_point == "/sys/fs/cgroup" or not hierarchies):
        return "v2", (), unified
    if unified is not None:
        return "hybrid", tuple(hierarchies.values()), unified
    return ("v1" if hierarchies else "none"), tuple(hierarchies.values()), None


def _cgroup_mounts() -> list[proc.MountInfo]:
    """Without parsing the thousands of other lines that a machine full of containers has."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line for line in file if b" - cgroup" in line]
    return proc.parse_mountinfo(b"".join(lines))


def _is_visible(entry: proc.MountInfo) -> bool:
    """Not covered by a later mount."""
    try:
        device = os.stat(entry.mount_point).st_dev
    except OSError:
        return False
    return f"{os.major(device)}:{os.minor(device)}" == entry.device


def _unified(entry: proc.MountInfo, own_path: str) -> Hierarchy:
    controllers = tuple(_read(f"{entry.mount_point}/cgroup.controllers").split())
    return Hierarchy(controllers, entry.mount_point, _below(entry.root, own_path))


def _v1(entry: proc.MountInfo, own: dict[str, str]) -> Hierarchy | None:
    """The controllers of a v1 mount are among its superblock options; /proc/self/cgroup says how they are grouped."""
    options = set(entry.super_options.split(","))
    for names, path in own.items():
        controllers = tuple(names.split(","))
        if names and options.issuperset(controllers):
            return Hierarchy(controllers, entry.mount_point, _below(entry.root, path))
    return None


def _below(root: str, path: str) -> str:
    """``path`` seen from a mount of ``root``, as when a container shows only its own cgroup; "/" when not below."""
    if root == "/":
        return path
    return path[len(root) :] if path.startswith(root + "/") else "/"
