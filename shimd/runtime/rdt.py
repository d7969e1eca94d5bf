"""Intel RDT: a container's share of the last-level cache and of the memory bandwidth (``linux.intelRdt``).

The kernel has a directory for each class of service (CLOS) in the resctrl file system, which the administrator mounts:
``schemata`` holds its limits, ``tasks`` its processes, whose children are born in it; ``mon_groups/*`` are parts of it
with counters of their own. A class that the configuration names is shared and outlives the container; one without a
name is the container's, and goes with it if it was not there before. What refused a write, and why, stands in
``info/last_cmd_status``.
"""

from __future__ import annotations

import os

from shimd.contexts import suppress
from shimd.errors import FailedPrecondition, InvalidSpec, Problem, RuntimeFailure
from shimd.linux.proc import mountinfo
from shimd.oci.model import IntelRdt
from shimd.records import Record
from shimd.runtime.control import derive_status
from shimd.runtime.model import Container, unique_name
from shimd.runtime.state import ContainerState
from shimd.runtime.status import Operation
from shimd.runtime.status import check as check_operation
from shimd.typed import Callable, Iterable

ROOT_CLASS = "/"
_AT = "/linux/intelRdt"

Schemata = dict[str, dict[str, int | str]]


class Group(Record):
    """Directories of a container; ``monitoring`` is "" without one. ``owned``: the class goes with the container."""

    path: str
    monitoring: str
    owned: bool


NO_GROUP = Group("", "", owned=False)


def group_of(state: ContainerState) -> Group:
    return Group(state.intel_rdt_path, state.intel_rdt_mon_path, state.intel_rdt_owned)


def find_root() -> str:
    """Where resctrl is mounted; "" when it is not."""
    return next((mount.mount_point for mount in mountinfo() if mount.fstype == "resctrl"), "")


def check(wanted: IntelRdt, root: str) -> None:
    """Raises InvalidSpec for what this machine does not have."""
    problems = []
    if not root:
        problems.append(Problem(_AT, "intelRdt is specified in config, but Intel RDT is not enabled"))
    else:
        for field, asked, feature, kind in (
            ("l3CacheSchema", wanted.l3_cache_schema, "L3", "CAT"),
            ("memBwSchema", wanted.mem_bw_schema, "MB", "MBA"),
            ("enableMonitoring", wanted.enable_monitoring, "L3_MON", "monitoring"),
        ):
            if asked and not os.path.isdir(f"{root}/info/{feature}"):
                problems.append(Problem(f"{_AT}/{field}", f"specified in config, but Intel RDT/{kind} is not enabled"))
    if problems:
        raise InvalidSpec(problems, document="config.json")


def make(wanted: IntelRdt, root: str, container: str) -> Group:
    """The class with its limits, and the monitoring group; ``container`` is a name that no other container has.
    Raises RuntimeFailure, with nothing left.
    """
    named = wanted.clos_id or ""
    path = root if named == ROOT_CLASS else os.path.join(root, named or container)
    lines = schemata_lines(wanted.l3_cache_schema, wanted.mem_bw_schema, wanted.schemata)
    if named and not lines and not os.path.isdir(path):
        raise RuntimeFailure(f"{path}: the class has to be there when no schemata are given")
    made = _make_directory(root, path)
    group = Group(path, os.path.join(path, "mon_groups", container) if wanted.enable_monitoring else "", owned=False)
    try:
        limits = schemata_lines(wanted.l3_cache_schema, wanted.mem_bw_schema, ())
        if named and not made and limits:
            _compare(path, limits)
        write_schemata(group, root, lines)
        if group.monitoring:
            _make_directory(root, group.monitoring)
    except BaseException:
        if made:
            os.rmdir(path)
        raise
    return group._replace(owned=made and not named)


def _make_directory(root: str, path: str) -> bool:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    except OSError as error:
        raise _failure(root, f"make {path}", error) from error
    return True


def remove(group: Group, rmdir: Callable[[str], None] = os.rmdir) -> None:
    """What is already gone is fine. The container's last process has ended."""
    path = group.path if group.owned else group.monitoring
    if path:
        try:
            rmdir(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RuntimeFailure(f"remove {path}: {error.strerror}") from error


def open_tasks(group: Group) -> list[int]:
    """A process that writes 0 to each joins."""
    opened: list[int] = []
    for path in filter(None, (group.path, group.monitoring)):
        try:
            opened.append(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise RuntimeFailure(f"open {path}/tasks: {error.strerror}") from error
    return opened


def update(container: Container, *, l3_cache_schema: str = "", mem_bw_schema: str = "") -> None:
    """See Runtime.update_rdt."""
    check_operation(Operation.UPDATE, derive_status(container), container.id)
    root = find_root()
    for value, feature, what in (
        (l3_cache_schema, "L3", "CAT: l3 cache"),
        (mem_bw_schema, "MB", "MBA: memory bandwidth"),
    ):
        if value and not (root and os.path.isdir(f"{root}/info/{feature}")):
            raise FailedPrecondition(f"Intel RDT/{what} schema is not enabled")
    group = group_of(container.state)
    if group.path:
        write_schemata(group, root, schemata_lines(l3_cache_schema, mem_bw_schema, ()))
        return
    wanted = IntelRdt(l3_cache_schema=l3_cache_schema or None, mem_bw_schema=mem_bw_schema or None)
    group = make(wanted, root, unique_name(container.namespace, container.id))
    container.state = container.state._replace(intel_rdt_path=group.path, intel_rdt_owned=group.owned)
    container.directory.save(container.state)
    _move(container.cgroup.pids(), group, root)


def _move(pids: Iterable[int], group: Group, root: str) -> None:
    (tasks,) = open_tasks(group)
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.write(tasks, str(pid).encode())
    except OSError as error:
        raise _failure(root, f"move a process to {group.path}", error) from error
    finally:
        os.close(tasks)


def schemata_lines(l3_cache: str | None, memory_bandwidth: str | None, schemata: Iterable[str]) -> list[str]:
    """In the order of the specification, in which later ones win. It wants lines for the memory bandwidth left out of
    the one for the cache.
    """
    lines = [line for line in (l3_cache or "").splitlines() if not line.startswith("MB:")]
    return [*lines, *(memory_bandwidth or "").splitlines(), *schemata]


def write_schemata(group: Group, root: str, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines if line)
    if not text:
        return
    path = f"{group.path}/schemata"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _failure(root, f"write {text!r} to {path}", error) from error


def _failure(root: str, attempt: str, error: OSError) -> RuntimeFailure:
    text = f"{attempt}: {error.strerror}"
    try:
        with open(f"{root}/info/last_cmd_status", encoding="utf-8", errors="replace") as file:
            text += f", last_cmd_status: {file.read(1000).strip()}"
    except OSError:
        pass
    return RuntimeFailure(text)


def _compare(path: str, lines: Iterable[str]) -> None:
    """A class that others use keeps its limits: they have to be the wanted ones."""
    try:
        with open(f"{path}/schemata", encoding="utf-8") as file:
            present = _parse(file.read().splitlines())
    except OSError as error:
        raise RuntimeFailure(f"read {path}/schemata: {error.strerror}") from error
    for resource, domains in _parse(lines).items():
        for domain, value in domains.items():
            if present.get(resource, {}).get(domain) != value:
                raise RuntimeFailure(f"{path}/schemata: {resource} of {domain} is not as in the configuration")


def _parse(lines: Iterable[str]) -> Schemata:
    """ "L3:0=0ff;1=f" as {"L3": {"0": 255, "1": 15}}: leading zeros and the order make no difference."""
    parsed: Schemata = {}
    for line in lines:
        resource, colon, rest = line.strip().partition(":")
        if colon:
            pairs = (entry.partition("=") for entry in rest.split(";"))
            parsed[resource] = {domain.strip(): _number(resource, value.strip()) for domain, _, value in pairs}
    return parsed


def _number(resource: str, value: str) -> int | str:
    try:
        return int(value, 16 if resource.startswith("L") else 10)
    except ValueError:
        return value
