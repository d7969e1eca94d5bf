"""The container's directories in all hierarchies of cgroup v1, and in the unified one of a hybrid system.

The hot path is :meth:`V1Manager.create`: per hierarchy one mkdir, the writes that the configuration asks for, and
one open of ``tasks`` for the process to join with. Nothing is read back: a fresh cgroup has the kernel's
defaults and its parent's devices, and nobody is in it, so limits and device rules are in force before the first
process enters.
"""

from __future__ import annotations

import os
from errno import EBUSY

from shimd.cgroups import devices, files, resources_v1
from shimd.cgroups.files import NO_PERMISSION, Directory, Write, open_directory
from shimd.cgroups.place import Group, groups_to_state, reachable, sub_path
from shimd.cgroups.view import View, view_v1
from shimd.contexts import ExitStack, suppress
from shimd.errors import FailedPrecondition, InvalidArgument, RuntimeFailure
from shimd.linux import proc
from shimd.linux.signals import signal
from shimd.oci.model import Resources
from shimd.typed import TYPE_CHECKING, Callable, Iterator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimd.cgroups.oom import Watch
    from shimd.cgroups.stats import Stats

Plan = dict[str, list[Write]]  # by controller
_NONE: Mapping[str, str] = {}


class V1Manager:
    """See shimd.cgroups.manager.CgroupManager. ``tolerant``: groups that may not be made are left out (rootless,
    with no limits and no path asked for); ``rootless``: device rules that are refused are no error, nor is a unified
    hierarchy that was not delegated beside those of v1; ``in_userns``: the devices controller is out of reach and not
    needed; ``own`` are our own cgroups by mount, where a container stays whose group is left out.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        *,
        in_userns: bool = False,
        rootless: bool = False,
        tolerant: bool = False,
        own: Mapping[str, str] = _NONE,
    ) -> None:
        self._groups = groups
        self._outside: tuple[Group, ...] = ()
        self._own = own
        self._in_userns = in_userns
        self._rootless = rootless
        self._tolerant = tolerant
        self._made: list[tuple[str, list[str]]] = []
        self._tasks: list[int] = []

    # ---- where -----------------------------------------------------------------------------------------------------

    @property
    def paths(self) -> dict[str, str]:
        return {name: group.directory for group in self._groups for name in group.controllers or ("",)}

    def to_state(self) -> dict[str, object]:
        return {"driver": "v1", "groups": groups_to_state(self._groups)}

    def view(self) -> View:
        return view_v1(self._groups + self._outside)

    def _find(self, *controllers: str) -> Group | None:
        """The group of the first of these controllers that is mounted."""
        for wanted in controllers:
            for group in self._groups:
                if wanted in (group.controllers or ("",)):
                    return group
        return None

    def _any(self) -> Group:
        group = self._find("freezer", "devices", "pids", "memory") or next(iter(self._groups), None)
        if group is None:
            raise FailedPrecondition("the container has no cgroup")
        return group

    def _open(self, controller: str, purpose: str) -> Directory:
        group = self._find(controller)
        if group is None:
            raise FailedPrecondition(f"cannot {purpose}: the container has no {controller} cgroup")
        return open_directory(group.mount, group.path)

    def exists(self) -> bool:
        return any(os.path.isdir(group.directory) for group in self._groups)

    # ---- making and removing ---------------------------------------------------------------------------------------

    def create(self, resources: Resources) -> None:
        writes = self._plan(resources)
        access = None if self._in_userns else devices.wanted(resources.devices)
        kept, outside = [], []
        with ExitStack() as undo:
            undo.callback(self._undo_create)
            for group in self._groups:
                if self._create_group(group, writes, access):
                    kept.append(group)
                elif group.controllers:
                    outside.append(group._replace(path=self._own.get(group.mount, "").strip("/")))
            undo.pop_all()
        self._groups, self._outside = tuple(kept), tuple(outside)

    def _plan(self, resources: Resources) -> Plan:
        plan = resources_v1.writes(resources)
        for controller in plan:
            if self._find(controller) is None:
                raise RuntimeFailure(f"cannot set {controller} limit: container could not join or create cgroup")
        return plan

    def _create_group(self, group: Group, plan: Plan, access: devices.Access | None) -> bool:
        """False when the group is left out for want of permission."""
        try:
            made = files.make_directories(group.mount, group.path)
        except OSError as err:
            optional = (self._tolerant and not plan) or (self._rootless and not group.controllers)
            if optional and err.errno in NO_PERMISSION:
                return False
            raise RuntimeFailure(f"mkdir {err.filename}: {files.errno_text(err)}") from err
        self._made.append((group.mount, made))
        fresh = group.path in made  # not so when somebody made it just now, below parents that we made
        if not fresh:
            self._refuse_used(group)
        try:
            self._fill_group(group, plan, access, made=made, fresh=fresh)
        except OSError as err:
            raise files.open_error("set up the cgroup", err) from err
        return True

    def _fill_group(
        self, group: Group, plan: Plan, access: devices.Access | None, *, made: list[str], fresh: bool
    ) -> None:
        writes = [item for controller in group.controllers for item in plan.get(controller, ())]
        if access is not None and "devices" in group.controllers:
            self._apply_devices(group, access, fresh=fresh)
        if "cpuset" in group.controllers:
            _fill_cpusets(group, made, writes)
        if writes:
            with open_directory(group.mount, group.path) as directory:
                _apply(directory, writes)
                self._tasks.append(directory.open("tasks", os.O_WRONLY))
        elif group.controllers:
            self._tasks.append(files.open_file(group.mount, f"{group.path}/tasks", os.O_WRONLY))

    def _apply_devices(self, group: Group, access: devices.Access, *, fresh: bool) -> None:
        with open_directory(group.mount, group.path) as directory:
            try:
                directory.apply(device_writes(group, access, fresh=fresh))
            except RuntimeFailure as err:
                cause = err.__cause__
                # Only root may write them, whoever the files belong to. A user's container can make no devices.
                if not (self._rootless and isinstance(cause, OSError) and cause.errno in NO_PERMISSION):
                    raise

    def _refuse_used(self, group: Group) -> None:
        """A directory that was there already: no process may be in it, and it may not be frozen, or init would hang
        on joining.
        """
        pids = files.pids_of(group.mount, group.path)
        if pids:
            raise FailedPrecondition(f"container's cgroup is not empty: {len(pids)} process(es) found")
        if "freezer" in group.controllers:
            with open_directory(group.mount, group.path) as directory:
                if directory.read_or("freezer.state", "") not in ("THAWED\n", ""):
                    raise FailedPrecondition("container's cgroup unexpectedly frozen")

    def _undo_create(self) -> None:
        self.close()
        for mount, made in reversed(self._made):
            files.remove_made(mount, made)
        self._made.clear()

    def delegate(self, uid: int) -> None:
        """Nothing: a user who can write to a v1 hierarchy could leave it."""

    def destroy(self) -> None:
        """Removes the container's directories and what it made below them. Parents stay, as with the other
        runtimes: limits that an administrator has set on one would be lost without a word, and the next container
        would only make it again.
        """
        self.close()
        files.remove_trees((group.mount, group.path) for group in self._groups)

    def close(self) -> None:
        """Gives up the descriptors of create() that open_procs() has not handed over."""
        while self._tasks:
            os.close(self._tasks.pop())

    # ---- joining ---------------------------------------------------------------------------------------------------
    # A write to cgroup.procs takes a lock against all forks of the machine, and after a quiet moment that means to
    # wait for an RCU grace period: 10 ms and more. A thread that moves itself by writing 0 to ``tasks`` does not
    # need it (5.5), nor does a process that is born in its cgroup; init does both while it has one thread.

    def open_procs(self) -> list[int]:
        """``tasks`` of every v1 hierarchy, open for a process with a single thread to write 0 to; the caller owns
        them.
        """
        if self._tasks:
            handed, self._tasks = self._tasks, []
            return handed
        return self._open_tasks({})

    def cgroup_fd(self) -> int:
        """The unified hierarchy of a hybrid system has no ``tasks``: its process is born there."""
        return self.exec_cgroup_fd(0)

    def exec_procs(self, init_pid: int, subs: Mapping[str, str] = {}) -> list[int]:
        return self._open_tasks(self._exec_paths(init_pid, subs))

    def exec_cgroup_fd(self, init_pid: int, subs: Mapping[str, str] = {}) -> int:
        unified = self._find("")
        if unified is None:
            return -1
        path = self._exec_paths(init_pid, subs).get(unified.mount, unified.path)
        try:
            return files.open_beneath(unified.mount, path)
        except OSError as err:
            raise files.open_error("enter the cgroup by adding pid 0 to it", err) from err

    def entry(self) -> Callable[[int], None] | None:
        """None: the process joins by itself."""
        return None

    def exec_entry(self, init_pid: int, subs: Mapping[str, str] = {}) -> Callable[[int], None] | None:
        """None: the process joins by itself."""
        return None

    def _exec_paths(self, init_pid: int, subs: Mapping[str, str]) -> dict[str, str]:
        """Paths by mount, where they are not the container's own: a sub-cgroup, or where init is when ours was
        taken away.
        """
        if "" in subs:
            return {group.mount: sub_path(group, subs[""]) for group in self._groups}
        if subs:
            return {group.mount: sub_path(group, sub) for group, sub in self._by_controller(subs)}
        gone = [group for group in self._groups if not os.path.isdir(group.directory)]
        if not gone:
            return {}
        found = proc.cgroup_paths(init_pid)
        return {group.mount: reachable(found.get(",".join(group.controllers), "")) for group in gone}

    def _by_controller(self, subs: Mapping[str, str]) -> Iterator[tuple[Group, str]]:
        for controller, sub in subs.items():
            group = next((group for group in self._groups if controller in group.controllers), None)
            if group is None:
                raise InvalidArgument(f"unknown controller {controller} in sub cgroup paths")
            yield group, sub

    def _open_tasks(self, paths: dict[str, str]) -> list[int]:
        fds: list[int] = []
        with ExitStack() as undo:
            for group in self._groups:
                if group.controllers:
                    path = paths.get(group.mount, group.path)
                    try:
                        fds.append(files.open_file(group.mount, f"{path}/tasks", os.O_WRONLY))
                    except OSError as err:
                        raise files.open_error("enter the cgroup by adding pid 0 to its tasks", err) from err
                    undo.callback(os.close, fds[-1])
            undo.pop_all()
        return fds

    def apply(self, pid: int) -> None:
        for group in self._groups:
            with open_directory(group.mount, group.path) as directory:
                directory.apply([Write("cgroup.procs", str(pid))])

    # ---- limits ----------------------------------------------------------------------------------------------------

    def set(self, resources: Resources) -> None:
        """Limits of a cgroup in use; device rules are not touched."""
        plan = resources_v1.writes(resources, memory_limit=self._memory_number("memory.limit_in_bytes"))
        for controller, writes in plan.items():
            with self._open(controller, f"set {controller} limit") as directory:
                _apply(directory, writes)

    def update(self, current: Resources, change: Resources) -> Resources:
        from shimd.cgroups import update

        merged = update.merge(current, change)
        if merged.memory.check_before_update:
            usage = self._memory_number("memory.usage_in_bytes")
            swapped = self._memory_number("memory.memsw.usage_in_bytes")
            update.check_memory(merged.memory, usage=usage, usage_with_swap=swapped)
        try:
            self.set(merged)
        except RuntimeFailure:
            with suppress(RuntimeFailure):
                self.set(current)
            raise
        return merged

    def _memory_number(self, file: str) -> int | None:
        group = self._find("memory")
        directory = files.open_if_there(group.mount, group.path) if group else None
        if directory is None:
            return None
        with directory:
            text = directory.read_or(file, "")
        return int(text) if text else None

    # ---- processes -------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        group = self._any()
        return files.pids_of(group.mount, group.path)

    def freeze(self) -> None:
        from shimd.cgroups.freezer import freeze_v1

        with self._open("freezer", "freeze") as directory:
            freeze_v1(directory)

    def thaw(self) -> None:
        from shimd.cgroups.freezer import thaw_v1

        with self._open("freezer", "thaw") as directory:
            thaw_v1(directory)

    def frozen(self) -> bool:
        from shimd.cgroups.freezer import frozen_v1

        group = self._find("freezer")
        directory = files.open_if_there(group.mount, group.path) if group else None
        if directory is None:
            return False
        with directory:
            return frozen_v1(directory)

    def wake_killed(self) -> None:
        """A frozen task of v1 sees SIGKILL only after a thaw."""
        if self.frozen():
            self.thaw()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        from shimd.cgroups.kill import signal_frozen

        was_frozen = self.frozen()
        keep_frozen = was_frozen and signum != signal.SIGKILL
        unified = self._find("")
        if signum == signal.SIGKILL and unified is not None:
            self._kill_unified(unified)
            if not set(self.pids()) - set(files.pids_of(unified.mount, unified.path)):
                self.wake_killed()
                return
        signal_frozen(
            signum,
            pids=self.pids,
            freeze=_nothing if was_frozen else self.freeze,
            thaw=_nothing if keep_frozen else self.wake_killed,
        )

    def _kill_unified(self, unified: Group) -> None:
        """Every process of ours is also in the unified hierarchy, whose kill catches even a fork bomb without
        freezing it.
        """
        from shimd.cgroups.kill import kill_cgroup

        directory = files.open_if_there(unified.mount, unified.path)
        if directory is not None:
            with directory:
                kill_cgroup(directory)

    # ---- figures ---------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        from shimd.cgroups import stats_v1

        return stats_v1.read(self._groups)

    def oom_watch(self) -> Watch:
        from shimd.cgroups.oom import WatchV1

        group = self._find("memory")
        if group is None:
            raise FailedPrecondition("cannot watch for OOM kills: the container has no memory cgroup")
        return WatchV1(group.mount, group.path)


def _nothing() -> None:
    pass


def device_writes(group: Group, target: devices.Access, *, fresh: bool) -> list[Write]:
    current = devices.EVERYTHING
    if not fresh:
        with open_directory(group.mount, group.path) as directory:
            current = devices.parse_list(directory.read("devices.list"))
    return [
        Write("devices.allow" if rule.allow else "devices.deny", rule.text())
        for rule in devices.transition(current, target)
    ]


def _apply(directory: Directory, writes: list[Write]) -> None:
    try:
        directory.apply(writes)
    except RuntimeFailure as err:
        cause = err.__cause__
        if (
            isinstance(cause, OSError)
            and cause.errno == EBUSY
            and str(cause.filename).endswith("memory.limit_in_bytes")
        ):
            usage = directory.read_or("memory.usage_in_bytes", "?").strip()
            peak = directory.read_or("memory.max_usage_in_bytes", "?").strip()
            wanted = next(item.value for item in writes if item.file == "memory.limit_in_bytes")
            raise RuntimeFailure(
                f"unable to set memory limit to {wanted} (current usage: {usage}, peak usage: {peak})"
            ) from cause
        raise


def _fill_cpusets(group: Group, made: list[str], writes: list[Write]) -> None:
    """Give the group, and parents that have none, the CPUs and memory nodes of the parent: a cpuset cgroup begins
    empty, and no process can enter an empty one (ENOSPC). Parents of our making hand their values down to later
    children by themselves.
    """
    coming = {item.file for item in writes}
    try:
        for path in made:
            if path == group.path:
                continue
            with open_directory(group.mount, path) as directory:
                directory.write("cgroup.clone_children", "1")
        with open_directory(group.mount, group.path) as directory:
            for file in ("cpuset.cpus", "cpuset.mems"):
                if directory.read(file) != "\n":
                    continue
                # asked for or not, the value has to be within the parent's, which may be empty still
                value = _inherited(group.mount, os.path.dirname(group.path), file)
                if file not in coming:
                    directory.write(file, value)
    except OSError as err:
        raise RuntimeFailure(f"unable to inherit {err.filename}: {files.errno_text(err)}") from err


def _inherited(mount: str, path: str, file: str) -> str:
    """The value of ``file`` at ``path``, which is filled from its own parent first when it is empty."""
    with open_directory(mount, path) as directory:
        value = directory.read(file).strip()
        if value or not path:
            return value
        value = _inherited(mount, os.path.dirname(path), file)
        directory.write(file, value)
        return value
