"""What a mount of type cgroup in the container shows: the plan's view of the container's own directories."""

from __future__ import annotations

import posixpath

from shimd.cgroups.place import Group
from shimd.records import Record


class ViewHierarchy(Record):
    """``name`` of the directory below /sys/fs/cgroup, ``options`` to mount the hierarchy with, ``source``: the
    container's directory.
    """

    name: str
    options: str
    source: str


class View(Record):
    """``hierarchies`` and ``links`` (name, target) of v1; ``unified`` is the container's directory in a cgroup2
    mount or "".
    """

    hierarchies: tuple[ViewHierarchy, ...]
    links: tuple[tuple[str, str], ...]
    unified: str


def view_v1(groups: tuple[Group, ...]) -> View:
    hierarchies = []
    links = []
    unified = ""
    for group in groups:
        if not group.controllers:
            unified = group.directory
            continue
        name = posixpath.basename(group.mount)
        hierarchies.append(ViewHierarchy(name, ",".join(group.controllers), group.directory))
        if len(group.controllers) > 1:
            links += [(controller, name) for controller in group.controllers if controller != name]
    return View(tuple(hierarchies), tuple(links), unified)


def view_v2(group: Group) -> View:
    return View((), (), group.directory)
