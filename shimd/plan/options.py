"""What the caller of the compiler decides beside config.json."""

from __future__ import annotations

from shimd.records import Record


class CgroupHierarchy(Record):
    """A v1 hierarchy: ``name`` of its directory below /sys/fs/cgroup, mount ``options`` ("cpu,cpuacct",
    "name=systemd"), ``source`` the container's own directory on the host.
    """

    name: str
    options: str
    source: str


class CgroupView(Record):
    """What a mount of type cgroup shows. ``links`` are (name, target) of co-mounted controllers; ``unified`` is the
    container's own directory in the cgroup2 file system, "" for none.
    """

    hierarchies: tuple[CgroupHierarchy, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    unified: str = ""


class CompileOptions(Record):
    """``bundle`` and ``rootfs`` are absolute. ``gate``: wait for ``start`` before the program runs. ``death_signal`` is
    sent to the container when its parent dies, 0 for none. ``seccomp_cache`` is a directory, "" for memory only.
    ``keyring`` is the name of the session keyring, "" for one that anybody can guess. ``cgroup_entry``: the process is
    put into its cgroup by the runtime.
    """

    id: str
    bundle: str
    rootfs: str
    gate: bool = True
    cgroup_slots: tuple[str, ...] = ()
    cgroup_entry: bool = False
    rdt_slots: tuple[str, ...] = ()
    cgroups: CgroupView = CgroupView()
    no_pivot: bool = False
    no_new_keyring: bool = False
    keyring: str = ""
    preserve_fds: int = 0
    death_signal: int = 0
    seccomp_cache: str = ""


class ExecOptions(Record):
    """``id`` is the container's. The rest as in CompileOptions."""

    id: str
    cgroup_slots: tuple[str, ...] = ()
    cgroup_entry: bool = False
    rdt_slots: tuple[str, ...] = ()
    no_new_keyring: bool = False
    keyring: str = ""
    preserve_fds: int = 0
    death_signal: int = 0
    seccomp_cache: str = ""
