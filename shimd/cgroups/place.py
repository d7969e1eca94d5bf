"""Where a container's cgroup is: ``linux.cgroupsPath`` to a directory below a cgroup mount. Pure."""

from __future__ import annotations

import posixpath

from shimd.errors import FailedPrecondition, InternalError, InvalidArgument, InvalidSpec, Problem
from shimd.host.facts import Hierarchy
from shimd.records import Record

_POINTER = "/linux/cgroupsPath"


class Group(Record):
    """One directory of one hierarchy. ``path`` is relative to ``mount``, cleaned, never empty; ``controllers`` is
    () for cgroup2.
    """

    controllers: tuple[str, ...]
    mount: str
    path: str

    @property
    def directory(self) -> str:
        return f"{self.mount}/{self.path}"


def clean(path: str) -> str:
    """``path`` as below a root that it cannot leave, without a slash in front; "" is the root itself."""
    return posixpath.normpath("/" + path).lstrip("/")


def relative_path(cgroups_path: str, container_id: str, own_path: str) -> str:
    """The directory below a mount: an absolute ``cgroups_path`` counts from the mount, any other (or none: the id)
    from ``own_path``.

    Raises InvalidSpec for the root cgroup, which no container may have: it cannot be limited, frozen or removed.
    """
    wanted = clean(cgroups_path or container_id)
    if not cgroups_path.startswith("/"):
        wanted = clean(f"{own_path}/{wanted}") if wanted else ""
    if not wanted:
        raise InvalidSpec([Problem(_POINTER, f'"{cgroups_path}" is the root cgroup')])
    if "\0" in wanted or "\n" in wanted:
        raise InvalidSpec([Problem(_POINTER, "a cgroup's name cannot have a line break or a null byte")])
    return wanted


def names_unit(cgroups_path: str) -> bool:
    """Whether this can only be meant for systemd, as ``system.slice:docker:ID``."""
    parts = cgroups_path.split(":")
    return len(parts) == 3 and parts[0].endswith(".slice") and "/" not in cgroups_path


def sub_path(group: Group, sub: str) -> str:
    """The container's cgroup ("/") or one below it, for exec. Raises InvalidArgument for any other."""
    if ".." in sub.split("/"):
        raise InvalidArgument(f"bad sub cgroup path: {sub}")
    return f"{group.path}/{clean(sub)}".rstrip("/")


def reachable(path: str) -> str:
    """A path of /proc/PID/cgroup as relative to the mount; FailedPrecondition when it is out of our sight or the
    root.
    """
    if path.startswith("/..") or not clean(path):
        raise FailedPrecondition(f'the container\'s init is in a cgroup out of reach: "{path}"')
    return clean(path)


def v1_groups(
    hierarchies: tuple[Hierarchy, ...], unified: Hierarchy | None, cgroups_path: str, container_id: str, parent: str
) -> tuple[Group, ...]:
    """A directory in every mounted hierarchy, and in the unified one of a hybrid system, which runs without
    controllers.
    """
    groups = [
        Group(
            hierarchy.controllers,
            hierarchy.mount_point,
            relative_path(cgroups_path, container_id, parent or hierarchy.own_path),
        )
        for hierarchy in hierarchies
    ]
    if unified is not None:
        path = relative_path(cgroups_path, container_id, parent or unified.own_path)
        groups.append(Group((), unified.mount_point, path))
    return tuple(groups)


def v2_group(unified: Hierarchy, cgroups_path: str, container_id: str, parent: str) -> Group:
    """A relative path counts from the parent of our own cgroup: ours has a process, so no controllers can be
    enabled below it.
    """
    base = parent or posixpath.dirname(unified.own_path)
    return Group((), unified.mount_point, relative_path(cgroups_path, container_id, base))


def groups_to_state(groups: tuple[Group, ...]) -> list[list[object]]:
    return [[list(group.controllers), group.mount, group.path] for group in groups]


def groups_from_state(document: object) -> tuple[Group, ...]:
    """Raises InternalError when the state file holds something else than groups_to_state wrote."""
    groups = []
    for entry in document if isinstance(document, list) else [document]:
        match entry:
            case [[*controllers], str(mount), str(path)] if path and clean(path) == path:
                groups.append(Group(tuple(str(name) for name in controllers), mount, path))
            case _:
                raise InternalError(f"unusable cgroup in the saved state: {entry!r}")
    return tuple(groups)
