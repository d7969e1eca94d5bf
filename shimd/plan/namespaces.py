"""Which namespaces are made by the clone, which are joined, by whom and in which order.

Facts about the kernel:

- A joined pid namespace is entered only by the children of the process that joined it, so it is joined in the *stage*.
  A launcher can do that alone by itself and go back. Anything else in the stage takes an intermediate process: the
  offsets of a new time namespace, fixed once a process is inside, and joining the user namespace that others are to
  belong to.
- clone3 with CLONE_NEWUSER makes the user namespace first, and it then owns the others of the same call.
- Joining a namespace needs CAP_SYS_ADMIN over it. A host's root has that as long as it is not in the container's user
  namespace yet, so it joins the user namespace last; anybody else has it only from inside, and joins it first.
- A cgroup namespace shows the cgroup of the process that makes it as its root, so it comes after entering the cgroup.
- oom_score_adj can be lowered only with CAP_SYS_RESOURCE in the initial user namespace.
"""

from __future__ import annotations

from shimd.host.facts import HostFacts
from shimd.linux.process import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from shimd.oci import model
from shimd.plan import ops
from shimd.plan.builder import Builder
from shimd.records import Record

FLAGS = {
    "cgroup": CLONE_NEWCGROUP,
    "ipc": CLONE_NEWIPC,
    "mount": CLONE_NEWNS,
    "network": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "time": CLONE_NEWTIME,
    "user": CLONE_NEWUSER,
    "uts": CLONE_NEWUTS,
}


class Layout(Record):
    """``new`` are CLONE_NEW* flags, ``joined`` are in the order of joining, with their pointers in ``origins``.
    ``user_first``: the time namespace, which a stage makes, takes rights that only the new user namespace gives.
    """

    new: int
    joined: tuple[ops.NamespaceFile, ...]
    origins: tuple[str, ...]
    offsets: tuple[tuple[str, int, int], ...]
    user_first: bool = False

    @property
    def all(self) -> int:
        flags = self.new
        for file in self.joined:
            flags |= file.type
        return flags

    @property
    def clone(self) -> int:
        """The flags of the clone of the container's init."""
        made = CLONE_NEWTIME if self.offsets else 0
        return self.new & ~(CLONE_NEWCGROUP | made | (CLONE_NEWUSER if self.user_first else 0))


def layout(linux: model.Linux, host: HostFacts) -> Layout:
    new = 0
    joins = []
    for index, namespace in enumerate(linux.namespaces):
        flag = FLAGS[namespace.type]
        if namespace.path is None:
            new |= flag
        else:
            joins.append((ops.NamespaceFile(f"ns.{index}", namespace.path, flag), f"/linux/namespaces/{index}/path"))
    user_comes_last = host.euid == 0
    joins.sort(key=lambda join: (join[0].type == CLONE_NEWUSER) == user_comes_last)
    offsets = tuple([(clock, offset.secs, offset.nanosecs) for clock, offset in linux.time_offsets.items()])
    user_first = bool(offsets and new & CLONE_NEWUSER and host.euid != 0)
    return Layout(new, tuple([file for file, _ in joins]), tuple([origin for _, origin in joins]), offsets, user_first)


def precedes_clone(plan: Layout, oom_score_adj: int | None) -> bool:
    """Whether an intermediate process has to do all that comes before the clone; else only the pid namespace may."""
    if plan.offsets or any(file.type == CLONE_NEWUSER for file in plan.joined):
        return True
    return bool(plan.new & CLONE_NEWUSER and (plan.joined or (oom_score_adj is not None and oom_score_adj < 0)))


def add_joins(builder: Builder, plan: Layout, kinds: int = -1) -> None:
    """Those of the joined namespaces that are among ``kinds``, then the time namespace that needs offsets."""
    for file, origin in zip(plan.joined, plan.origins, strict=True):
        if file.type & kinds:
            builder.add(ops.Setns(file.slot, file.type), origin)
    if plan.offsets:
        _add_time(builder, plan)


def _add_time(builder: Builder, plan: Layout) -> None:
    """A process that is not dumpable could not open its own file, without privileges over the host's root."""
    at = "/linux/timeOffsets"
    builder.add(ops.Unshare(CLONE_NEWTIME | (CLONE_NEWUSER if plan.user_first else 0)), at)
    if plan.user_first:
        builder.add(ops.Dumpable(dumpable=True))
    builder.add(ops.TimeOffsets(plan.offsets), at)
    if plan.user_first:
        builder.add(ops.Dumpable(dumpable=False))


def add_identity(builder: Builder, plan: Layout) -> None:
    """Root of the user namespace, once there are ids in it; then the namespaces that wait for that."""
    if plan.new & CLONE_NEWUSER:
        _add_maps(builder)
    if plan.all & CLONE_NEWUSER:
        builder.add(ops.BecomeRoot())
    if plan.new & CLONE_NEWCGROUP:
        builder.add(ops.Unshare(CLONE_NEWCGROUP), "/linux/namespaces")


def _add_maps(builder: Builder) -> None:
    """A runtime that is not root may write to the maps of a process that is its user's own, which one that is not
    dumpable is not (proc(5)). Nobody else is in the namespace yet.
    """
    unprivileged = builder.host.euid != 0
    if unprivileged:
        builder.add(ops.Dumpable(dumpable=True))
    builder.add(ops.Sync("maps"), "/linux/uidMappings")
    if unprivileged:
        builder.add(ops.Dumpable(dumpable=False))


def id_maps(mappings: tuple[model.IdMapping, ...]) -> tuple[ops.IdMap, ...]:
    return tuple([ops.IdMap(mapping.container_id, mapping.host_id, mapping.size) for mapping in mappings])


def net_devices(linux: model.Linux) -> tuple[ops.NetDevice, ...]:
    return tuple([ops.NetDevice(name, device.name or name) for name, device in linux.net_devices.items()])


def denies_setgroups(linux: model.Linux, host: HostFacts) -> bool:
    """Without privileges one may map only oneself, and only after giving up setgroups(2), see user_namespaces(7); who
    has done that cannot take it back in another namespace.
    """
    maps = linux.gid_mappings
    return host.setgroups_denied or (host.euid != 0 and len(maps) == 1 and maps[0].size == 1)
