"""The operations on mounts and on what is in the rootfs; see ``shimd.plan.ops``, through which they are used."""

from __future__ import annotations

from shimd.linux.mount import (
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)
from shimd.records import Record

# What may be mounted inside /proc: the files that lxcfs and the like replace. ``target`` resolved must be one of these.
PROC_FILES = frozenset(
    (
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/slabinfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/sys/crypto/fips_enabled",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/uptime",
    )
)

_ATTRIBUTES = (
    (MOUNT_ATTR_RDONLY, "ro", "rw"),
    (MOUNT_ATTR_NOSUID, "nosuid", "suid"),
    (MOUNT_ATTR_NODEV, "nodev", "dev"),
    (MOUNT_ATTR_NOEXEC, "noexec", "exec"),
    (MOUNT_ATTR_NOATIME, "noatime", ""),
    (MOUNT_ATTR_STRICTATIME, "strictatime", ""),
    (MOUNT_ATTR_NODIRATIME, "nodiratime", "diratime"),
    (MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow", "symfollow"),
)

_PROPAGATION = (
    (MS_PRIVATE, "private"),
    (MS_SLAVE, "slave"),
    (MS_SHARED, "shared"),
    (MS_UNBINDABLE, "unbindable"),
)


class MountAttr(Record):
    """One mount_setattr(2): set and clear are MOUNT_ATTR_* masks, propagation an MS_* propagation type or 0."""

    set: int
    clear: int
    propagation: int
    recursive: bool

    def words(self) -> list[str]:
        """As the options of mount(8) are called, with an "r" in front when they are recursive."""
        words = [name for flag, name, _ in _ATTRIBUTES if self.set & flag]
        if self.recursive:
            words += [name for flag, _, name in _ATTRIBUTES if self.clear & ~self.set & flag and name]
            if not words and self.clear:
                words = ["relatime"]
        words += [name for flag, name in _PROPAGATION if self.propagation & flag]
        return ["r" + word for word in words] if self.recursive else words


def _options(attr: MountAttr, more: tuple[MountAttr, ...], data: tuple[str, ...] = ()) -> str:
    words = attr.words()
    words += [item for item in data if item not in words]
    for item in more:
        words += item.words()
    return f" ({','.join(words)})" if words else ""


def _propagation_name(flags: int) -> str:
    return "r" * bool(flags & MS_REC) + "".join(name for flag, name in _PROPAGATION if flags & flag)


class PrepareRoot(Record):
    """Set the propagation of / (MS_* flags), part the mount that holds rootfs from its peers, bind rootfs on itself.

    ``slot`` is "" or the slot of a detached tree to attach instead of binding ``rootfs``. Opens the root descriptor
    that every later operation resolves paths in (openat2, RESOLVE_IN_ROOT). ``propagation`` 0: there is no mount
    namespace of our own, so nothing is mounted or changed and only the descriptor is opened.
    """

    rootfs: str
    propagation: int
    slot: str

    def describe(self) -> str:
        return f"prepare rootfs {self.rootfs}" + f" ({_propagation_name(self.propagation)})" * bool(self.propagation)


class Mount(Record):
    """A new file system instance: fsopen, fsconfig per ``data`` item, fsmount, move_mount onto ``target``.

    ``data`` are superblock options, one each ("size=65536k", "ro", "mode=755"). ``attr.set`` are fsmount's flags (its
    other fields are empty), ``more`` are mount_setattr calls in order once the mount is attached. ``copy_up``:
    tmpcopyup. A tmpfs without ``mode=`` takes the mode of the directory that it covers. ``label`` is the SELinux
    context= option, for mqueue the security.selinux attribute of its root.
    """

    target: str
    fstype: str
    source: str
    data: tuple[str, ...]
    attr: MountAttr
    more: tuple[MountAttr, ...]
    copy_up: bool
    label: str

    def describe(self) -> str:
        copied = ", with what it covers" if self.copy_up else ""
        return f"mount {self.fstype} on {self.target}{_options(self.attr, self.more, self.data)}{copied}"


class Remount(Record):
    """Reconfigure the file system mounted at ``target``: fspick, fsconfig per ``data`` item, then mount_setattr with
    ``attr`` and each of ``more``.
    """

    target: str
    data: tuple[str, ...]
    attr: MountAttr
    more: tuple[MountAttr, ...]

    def describe(self) -> str:
        return f"remount {self.target}{_options(self.attr, self.more, self.data)}"


class Bind(Record):
    """open_tree(OPEN_TREE_CLONE) of ``source`` (or the tree in ``slot``), mount_setattr, move_mount onto ``target``.

    ``inside``: ``source`` is a path in the rootfs, where earlier mounts are. ``id_map`` is the slot of the user
    namespace whose maps the mount gets, or with ``map_all`` each mount of the tree; a tree in a slot has them already.
    The mount point is made (directory 0755 or file 0644, like the source) when it is missing. ``remount`` tells that
    the options ask for flags: then flags not listed are cleared as MS_REMOUNT|MS_BIND does, but for the source's locked
    flags; those in ``explicit_clear`` (MOUNT_ATTR_*) must not be locked. ``attr`` is applied before the
    tree is attached, and only with ``remount``; ``more`` after.
    """

    target: str
    source: str
    slot: str
    recursive: bool
    remount: bool
    attr: MountAttr
    explicit_clear: int
    more: tuple[MountAttr, ...]
    inside: bool = False
    id_map: str = ""
    map_all: bool = False

    def describe(self) -> str:
        kept = MountAttr(0, 0, 0, recursive=False)
        how = "bind recursively" if self.recursive else "bind"
        source = f"{self.source} of the rootfs" if self.inside else self.source
        ids = f", ids {'of all ' * self.map_all}as in {self.id_map}" if self.id_map else ""
        return f"{how} {source} on {self.target}{_options(self.attr if self.remount else kept, self.more)}{ids}"


class MountCgroup1(Record):
    """The v1 or hybrid view of /sys/fs/cgroup: tmpfs, one mount or bind per hierarchy, symlinks for co-mounted names.

    ``hierarchies``: (directory name, file system type "cgroup" or "cgroup2", options "cpu,cpuacct" or "name=systemd",
    source). ``source`` is the host directory to bind, or "" to mount the file system itself, which a cgroup namespace
    cuts down to the container's own part. ``links``: (name, target). ``attr`` is for each of the hierarchies, the tmpfs
    is nosuid, nodev, noexec; with ``readonly`` it becomes read-only after the links are made.
    """

    target: str
    hierarchies: tuple[tuple[str, str, str, str], ...]
    links: tuple[tuple[str, str], ...]
    attr: MountAttr
    more: tuple[MountAttr, ...]
    readonly: bool

    def describe(self) -> str:
        names = " ".join(name for name, *_ in self.hierarchies)
        return f"mount cgroups {names} on {self.target}{_options(self.attr, self.more)}"


class MountCgroup2(Record):
    """cgroup2 on ``target``; on EPERM or EBUSY bind ``fallback`` (the container's own cgroup).

    When even that is missing (ENOENT, rootless), an empty read-only directory hides the host's tree.
    """

    target: str
    fallback: str
    attr: MountAttr
    more: tuple[MountAttr, ...]

    def describe(self) -> str:
        return f"mount cgroup2 on {self.target}{_options(self.attr, self.more)}"


class MakeDevice(Record):
    """mknod in the rootfs (kind "c", "b" or "p"), chmod, chown; an identical node is kept, any other is an error.

    EPERM, or ``bind``: bind-mount the host's node of the same path instead.
    """

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    bind: bool

    def describe(self) -> str:
        if self.bind:
            return f"bind device {self.path} of the host"
        return f"make device {self.path} {self.kind} {self.major}:{self.minor} {self.mode:04o} {self.uid}:{self.gid}"


class Symlink(Record):
    """A symbolic link in /dev, made relative to the root descriptor with no link in the parent followed.

    Existing names are kept unless ``replace``. With ``only_if`` the link is made only when that host path exists.
    """

    path: str
    target: str
    replace: bool
    only_if: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.target}"


class PivotRoot(Record):
    """Enter the rootfs; ``method``: "pivot" (pivot_root(".", ".")), "move" (MS_MOVE and chroot) or "chroot" alone."""

    method: str

    def describe(self) -> str:
        return f"enter the rootfs by {self.method}"


class MakeDirectory(Record):
    """mkdir -p inside the new root while it is still writable: the working directory."""

    path: str
    mode: int

    def describe(self) -> str:
        return f"make directory {self.path}"


class SetPropagation(Record):
    """Propagation of / after the pivot (rootfsPropagation shared or unbindable), an MS_* mask."""

    flags: int

    def describe(self) -> str:
        return f"make / {_propagation_name(self.flags)}"


class FinalizeReadonly(Record):
    """Read-only at the end: mount ``target`` ("/" for root.readonly) keeps its other flags."""

    target: str

    def describe(self) -> str:
        return f"make {self.target} read-only"


class ReadonlyPath(Record):
    """Bind onto itself recursively and remount read-only keeping flags; a missing path is ignored."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"


class MaskPaths(Record):
    """Hide files under the verified /dev/null (1:3), directories under one shared empty read-only tmpfs.

    Missing paths are ignored.
    """

    paths: tuple[str, ...]
    label: str

    def describe(self) -> str:
        return f"mask {' '.join(self.paths)}"
