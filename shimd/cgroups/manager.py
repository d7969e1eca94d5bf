"""The one way to a container's cgroup: which kind this host has is decided here and nowhere else.

A manager is a plain object without open descriptors, but for those between ``create`` and ``open_procs``, for which
``close`` is there. Managers of one container may be used from several threads and processes at once as far as the
kernel allows it; nothing is cached.
"""

from __future__ import annotations

from shimd.cgroups.place import groups_from_state, names_unit, v1_groups, v2_group
from shimd.errors import InternalError, Unimplemented
from shimd.linux.signals import signal
from shimd.typed import TYPE_CHECKING, Callable, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimd.cgroups.oom import Watch
    from shimd.cgroups.stats import Stats
    from shimd.cgroups.view import View
    from shimd.host.facts import HostFacts
    from shimd.oci.model import Resources

_NO_ANNOTATIONS: Mapping[str, str] = {}


class CgroupManager(Protocol):
    """Errors: RuntimeFailure when the kernel refuses, in runc's words; InvalidSpec for values that cannot be;
    FailedPrecondition for a cgroup that is in use or not there.
    """

    @property
    def paths(self) -> dict[str, str]:
        """Absolute directory by controller ("memory", "name=systemd"), "" for the unified hierarchy."""

    def create(self, resources: Resources) -> None:
        """Make the directories and set limits and device rules, before any process is in; where there is an ``entry``
        only see that it can. All is undone on failure. FailedPrecondition when a directory was there already with
        processes in it or frozen.
        """

    def cgroup_fd(self) -> int:
        """The directory in the unified hierarchy, for clone3 with CLONE_INTO_CGROUP; -1 when there is none. The
        caller closes it.
        """

    def open_procs(self) -> list[int]:
        """Files of the v1 hierarchies, in which init, still of one thread, writes 0 (JoinCgroup); the caller closes
        them. A process has to use both: be born in the one and write to the others.
        """

    def close(self) -> None:
        """Descriptors that create() opened and open_procs() has not handed over."""

    def exec_cgroup_fd(self, init_pid: int, subs: Mapping[str, str] = {}) -> int:
        """As cgroup_fd for a further process, in a sub-cgroup or where init really is when ours cannot take it.
        ``subs`` are relative to the container's cgroup, by controller, or one for all by "".
        """

    def exec_procs(self, init_pid: int, subs: Mapping[str, str] = {}) -> list[int]:
        """As open_procs, in the same way."""

    def entry(self) -> Callable[[int], None] | None:
        """For an init that cannot enter by itself: called with its pid, while it waits at the sync point "cgroup", it
        makes the cgroup round it, with limits and device rules in force. None when cgroup_fd and open_procs are all.
        """

    def exec_entry(self, init_pid: int, subs: Mapping[str, str] = {}) -> Callable[[int], None] | None:
        """The same for a further process; None when exec_cgroup_fd and exec_procs are all."""

    def apply(self, pid: int) -> None:
        """Move a process of somebody else's making in."""

    def set(self, resources: Resources) -> None:
        """Write limits; device rules stay as they are."""

    def update(self, current: Resources, change: Resources) -> Resources:
        """Merge, check, write; the merged resources, which the caller saves. On failure the old values are written
        back.
        """

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def frozen(self) -> bool:
        """Whether this cgroup itself is frozen; False when it is gone."""

    def wake_killed(self) -> None:
        """To be called after a SIGKILL to a process of a frozen cgroup, which needs a thaw on v1."""

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal every process, those just being forked included."""

    def pids(self) -> list[int]:
        """All processes of the subtree, ascending; [] when it is gone."""

    def stats(self) -> Stats: ...

    def oom_watch(self) -> Watch: ...

    def delegate(self, uid: int) -> None:
        """Hand the cgroup to a user of a container with its own, writable view of it (v2; nothing on v1, which
        cannot do so safely).
        """

    def destroy(self) -> None:
        """Remove, with what the container made below; waits a few seconds for processes that are still exiting."""

    def exists(self) -> bool: ...

    def view(self) -> View: ...

    def to_state(self) -> dict[str, object]:
        """What from_state needs, of JSON types."""


def manager(
    host: HostFacts,
    *,
    cgroups_path: str,
    container_id: str,
    root: str = "",
    systemd: bool | None = False,
    annotations: Mapping[str, str] = _NO_ANNOTATIONS,
) -> CgroupManager:
    """A manager for a container to be made; nothing is created yet. ``root`` is the cgroup under which relative
    paths are placed, instead of under our own. With ``systemd`` the path names a unit, of which ``annotations`` may set
    properties; None: if it has the form of one. Raises InvalidSpec.
    """
    if systemd or (systemd is None and host.systemd and names_unit(cgroups_path)):
        from shimd.cgroups import systemd as driver

        return driver.new_manager(host, cgroups_path, container_id, annotations)
    tolerant = _is_rootless(host) and not cgroups_path
    if host.cgroup_mode in ("v1", "hybrid"):
        from shimd.cgroups.v1 import V1Manager

        groups = v1_groups(host.hierarchies, host.unified, cgroups_path, container_id, root)
        own = {hierarchy.mount_point: hierarchy.own_path for hierarchy in host.hierarchies}
        return V1Manager(groups, in_userns=host.in_userns, rootless=_is_rootless(host), tolerant=tolerant, own=own)
    if host.unified is not None:
        from shimd.cgroups.v2 import V2Manager

        group = v2_group(host.unified, cgroups_path, container_id, root)
        return V2Manager(group, controllers=host.unified.controllers, rootless=_is_rootless(host), tolerant=tolerant)
    raise Unimplemented("this system has no cgroup hierarchy mounted")


def _is_rootless(host: HostFacts) -> bool:
    return (host.euid != 0 or host.in_userns) if host.rootless is None else host.rootless


def from_state(host: HostFacts, document: Mapping[str, object]) -> CgroupManager:
    """The manager of a container that is there; ``host`` tells what the saved state need not repeat."""
    groups = groups_from_state(document.get("groups"))
    if "unit" in document:
        from shimd.cgroups import systemd as driver

        return driver.from_state(host, groups, document)
    match document.get("driver"):
        case "v1":
            from shimd.cgroups.v1 import V1Manager

            return V1Manager(groups, in_userns=host.in_userns)
        case "v2":
            from shimd.cgroups.v2 import V2Manager

            group = groups[0] if groups else None
            return V2Manager(group, controllers=host.unified_controllers, rootless=_is_rootless(host))
        case other:
            raise InternalError(f"unusable cgroup driver in the saved state: {other!r}")
