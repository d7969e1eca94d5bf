"""Which unit of systemd a container is: ``linux.cgroupsPath`` of the form ``slice:prefix:name``, and the cgroup that
systemd gives to such a unit. Pure.
"""

from __future__ import annotations

from shimd.errors import InvalidSpec, Problem
from shimd.records import Record

_POINTER = "/linux/cgroupsPath"
_SLICE = ".slice"
# Of the name of a unit, systemd.unit(5).
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\-")
# Names that cgroup files have, or may have with the next kernel.
_FILES = ("notify_on_release", "release_agent", "tasks")
_CONTROLLERS = (
    "cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "hugetlb", "freezer", "net_cls",
    "net_prio", "perf_event", "rdma", "misc",
)  # fmt: skip


class Unit(Record):
    """``parent`` is the slice that it is in; ``path`` its cgroup, relative to that of systemd itself; ``title`` what
    the container is called in the unit's description.
    """

    name: str
    parent: str
    path: str
    title: str

    @property
    def is_slice(self) -> bool:
        return self.name.endswith(_SLICE)


def find_unit(cgroups_path: str, container_id: str, *, user: bool = False) -> Unit:
    """The unit for a container; ``user``: of the user's systemd instead of the machine's. Raises InvalidSpec."""
    parts = cgroups_path.split(":") if cgroups_path else ["", "runc", container_id]
    if len(parts) != 3:
        raise _invalid(
            'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
            f'got "{cgroups_path}" instead'
        )
    parent, prefix, title = parts
    if parent in ("", "-"):
        parent = "-.slice" if parent else "user.slice" if user else "system.slice"
    above = expand_slice(parent)
    if title.endswith(_SLICE):
        return Unit(title, parent, expand_slice(title), title)
    # "@", which joins namespace and id where there is no path, is for units made from templates.
    name = _escape(f"{prefix}-{title}.scope".replace("@", ":"))
    return Unit(name, parent, f"{above}/{escape_cgroup(name)}".lstrip("/"), title)


def expand_slice(name: str) -> str:
    """The cgroup of a slice: ``a-b.slice`` is in ``a.slice``; ``-.slice`` is the root, "". Raises InvalidSpec."""
    stem = name.removesuffix(_SLICE)
    if stem == "-" != name:
        return ""
    parts = stem.split("-")
    if stem == name or "/" in name or not _CHARACTERS.issuperset(name) or not all(parts):
        raise _invalid(f"invalid slice name: {name}")
    slices = ["-".join(parts[:count]) + _SLICE for count in range(1, len(parts) + 1)]
    return "/".join(map(escape_cgroup, slices))


def escape_cgroup(name: str) -> str:
    """systemd puts an underscore before a name that could be taken for a cgroup's file."""
    like_file = name in _FILES or name.partition(".")[0] in _CONTROLLERS
    return f"_{name}" if like_file or name.startswith(("_", ".")) else name


def _escape(name: str) -> str:
    """As systemd-escape(1) does it: container ids may have a "+", units may not."""
    parts = (part if part in _CHARACTERS else "".join(f"\\x{byte:02x}" for byte in part.encode()) for part in name)
    return "".join(parts)


def _invalid(text: str) -> InvalidSpec:
    return InvalidSpec([Problem(_POINTER, text)])
