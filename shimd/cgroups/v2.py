"""The container's directory in the unified hierarchy of cgroup v2.

A new cgroup has a controller only if every cgroup above it passes it on, so the first container of a branch enables
all there are on the way; that it is done shows in the new cgroup's own ``cgroup.controllers``, one read. A process
enters with clone3's CLONE_INTO_CGROUP, or through ``cgroup.procs``.
"""

from __future__ import annotations

import os
import posixpath
from errno import EACCES, ENOENT, EPERM

from shimd.cgroups import device_filter, devices, files, resources_v2
from shimd.cgroups.files import NO_PERMISSION, Directory, Write, open_directory
from shimd.cgroups.place import Group, groups_to_state, reachable, sub_path
from shimd.cgroups.view import View, view_v2
from shimd.contexts import ExitStack, suppress
from shimd.errors import FailedPrecondition, InvalidArgument, RuntimeFailure
from shimd.linux import proc
from shimd.linux.signals import signal
from shimd.oci.model import Resources
from shimd.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimd.cgroups.oom import Watch
    from shimd.cgroups.stats import Stats

_DELEGATE = "/sys/kernel/cgroup/delegate"


class V2Manager:
    """See shimd.cgroups.manager.CgroupManager. ``controllers`` are those of the mount's root; ``tolerant``: without
    permission and with nothing asked for, the container stays in our own cgroup (rootless); ``rootless``: device
    programs may be refused.
    """

    def __init__(
        self, group: Group | None, *, controllers: tuple[str, ...], rootless: bool = False, tolerant: bool = False
    ) -> None:
        self._group_or_none = group
        self._controllers = controllers
        self._rootless = rootless
        self._tolerant = tolerant
        self._made: list[str] = []

    # ---- where -----------------------------------------------------------------------------------------------------

    @property
    def _group(self) -> Group:
        if self._group_or_none is None:
            raise FailedPrecondition("the container has no cgroup")
        return self._group_or_none

    @property
    def paths(self) -> dict[str, str]:
        return {"": self._group.directory} if self._group_or_none else {}

    def to_state(self) -> dict[str, object]:
        return {"driver": "v2", "groups": groups_to_state((self._group,) if self._group_or_none else ())}

    def view(self) -> View:
        return view_v2(self._group) if self._group_or_none else View((), (), "")

    def _open(self) -> Directory:
        try:
            return open_directory(self._group.mount, self._group.path)
        except FileNotFoundError as err:
            raise FailedPrecondition(f"the container's cgroup {err.filename} does not exist") from err

    def _open_if_there(self) -> Directory | None:
        group = self._group_or_none
        return files.open_if_there(group.mount, group.path) if group else None

    def exists(self) -> bool:
        return self._group_or_none is not None and os.path.isdir(self._group.directory)

    # ---- making and removing ---------------------------------------------------------------------------------------

    def create(self, resources: Resources) -> None:
        group = self._group
        uses_bfq = _wants_weights(resources) and os.path.exists(f"{group.mount}/io.bfq.weight")
        writes = resources_v2.writes(resources, bfq=uses_bfq)
        unified = resources_v2.unified(resources.unified)
        access = devices.wanted(resources.devices)
        if not self._make(optional=not writes and not unified):
            self._group_or_none = None
            return
        with ExitStack() as undo:
            undo.callback(self._undo_create)
            with self._open() as directory:
                self._refuse_used(directory)
                self._enable_controllers(directory, needs_domain=resources_v2.needs_domain(resources))
                directory.apply(writes)
                fresh = group.path in self._made
                device_filter.attach(directory.fd, access, fresh=fresh, optional=self._rootless)
                self._apply_unified(directory, unified)
            undo.pop_all()

    def _make(self, *, optional: bool) -> bool:
        """False when the container is to do without a cgroup."""
        try:
            self._made = files.make_directories(self._group.mount, self._group.path)
        except OSError as err:
            reason = f"mkdir {err.filename}: {files.errno_text(err)}"
            if self._tolerant and err.errno in NO_PERMISSION:
                if optional:
                    return False
                reason = f"rootless needs no limits + no cgrouppath when no permission is granted for cgroups: {reason}"
            raise RuntimeFailure(reason) from err
        return True

    def _refuse_used(self, directory: Directory) -> None:
        """A directory that was there already: no process may be in it, and it may not be frozen, or init would hang
        on joining.
        """
        if self._group.path in self._made:
            return
        pids = files.pids_of(self._group.mount, self._group.path)
        if pids:
            raise FailedPrecondition(f"container's cgroup is not empty: {len(pids)} process(es) found")
        from shimd.cgroups.freezer import frozen_v2

        if frozen_v2(directory):
            raise FailedPrecondition("container's cgroup unexpectedly frozen")

    def _enable_controllers(self, directory: Directory, *, needs_domain: bool) -> None:
        """Failures are left to the limit that then has no file: a cgroup with processes cannot pass controllers on
        (EBUSY), and a delegated branch has not all of them.
        """
        if set(self._controllers) <= set(directory.read("cgroup.controllers").split()):
            return
        parts = self._group.path.split("/")
        for depth in range(len(parts) + 1):
            with open_directory(self._group.mount, "/".join(parts[:depth])) as current:
                if depth:
                    _check_type(current, needs_domain=needs_domain)
                if depth < len(parts):
                    _enable(current, self._controllers)

    def _apply_unified(self, directory: Directory, writes: list[Write]) -> None:
        for item in writes:
            try:
                directory.write(item.file, item.value)
            except OSError as err:
                controller = item.file.partition(".")[0]
                missing = err.errno in (ENOENT, EPERM, EACCES) and controller != "cgroup"
                if missing and controller not in directory.read("cgroup.controllers").split():
                    reason = f'unified resource "{item.file}" can\'t be set: controller "{controller}" not available'
                    raise RuntimeFailure(reason) from err
                cause = files.write_error(err, item.value)
                raise RuntimeFailure(f'unable to set unified resource "{item.file}": {cause}') from err

    def _undo_create(self) -> None:
        files.remove_made(self._group.mount, self._made)
        self._made = []

    def delegate(self, uid: int) -> None:
        """Give the cgroup to a user who may then manage what is below it, and not its own limits: cgroups(7),
        "Delegation".
        """
        try:
            with open(_DELEGATE, encoding="ascii") as file:
                names = file.read().split()
        except FileNotFoundError:
            names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        with self._open() as directory:
            os.chown(directory.fd, uid, -1)
            for name in names:
                with suppress(FileNotFoundError):
                    os.chown(name, uid, -1, dir_fd=directory.fd, follow_symlinks=False)

    def destroy(self) -> None:
        """Removes the container's directory and what it made below it; parents stay, see V1Manager.destroy."""
        if self._group_or_none is not None:
            files.remove_trees([(self._group.mount, self._group.path)])

    def close(self) -> None:
        """Nothing is kept open."""

    # ---- joining ---------------------------------------------------------------------------------------------------

    def open_procs(self) -> list[int]:
        """None: the process is born in its cgroup."""
        return []

    def cgroup_fd(self) -> int:
        if self._group_or_none is None:
            return -1
        if self._rootless and not self._may_enter(self._group.path):
            raise RuntimeFailure(
                f"enter the cgroup {self._group.directory}: permission denied",
                hint="start it from within the part of the hierarchy that was delegated to the user",
            )
        return self._open_entry(self._group.path)

    def exec_procs(self, init_pid: int, subs: Mapping[str, str] = {}) -> list[int]:
        """None: the process is born in its cgroup."""
        return []

    def exec_cgroup_fd(self, init_pid: int, subs: Mapping[str, str] = {}) -> int:
        """-1 also for a user who comes from outside of what was delegated and must not move a process into it: as with
        the other runtimes, it stays outside, unless a sub-cgroup is asked for.
        """
        if self._group_or_none is None:
            return -1
        path = self._exec_path(init_pid, subs)
        outside = self._rootless and not subs and not self._may_enter(path)
        return -1 if outside else self._open_entry(path)

    def entry(self) -> Callable[[int], None] | None:
        """None: the process is born in its cgroup."""
        return None

    def exec_entry(self, init_pid: int, subs: Mapping[str, str] = {}) -> Callable[[int], None] | None:
        """None: the process is born in its cgroup."""
        return None

    def _exec_path(self, init_pid: int, subs: Mapping[str, str]) -> str:
        if subs.keys() - {""}:
            raise InvalidArgument("cgroup v2 has one hierarchy: a sub cgroup path is for no controller")
        return sub_path(self._group, subs[""]) if subs else self._path_of_init(init_pid)

    def _may_enter(self, path: str) -> bool:
        """Moving needs write access to cgroup.procs of the nearest cgroup above both (cgroups(7), "Delegation
        containment rules"), and being born elsewhere counts as moving.
        """
        own = proc.cgroup_paths("self").get("", "")
        if own.startswith("/.."):
            return False
        above = posixpath.commonpath([own, f"/{path}"])
        return os.access(f"{self._group.mount}{above}/cgroup.procs", os.W_OK)

    def _open_entry(self, path: str) -> int:
        try:
            return files.open_beneath(self._group.mount, path)
        except OSError as err:
            raise files.open_error("enter the cgroup by adding pid 0 to it", err) from err

    def _path_of_init(self, init_pid: int) -> str:
        """The container's cgroup, unless it cannot take processes: an init like systemd moves itself to a cgroup
        below and enables controllers there (joining fails with EBUSY then), or a manager of services has moved it
        altogether.
        """
        directory = self._open_if_there()
        if directory is not None:
            with directory:
                if not directory.read("cgroup.subtree_control").strip():
                    return self._group.path
        return reachable(proc.cgroup_paths(init_pid).get("", ""))

    def apply(self, pid: int) -> None:
        if self._group_or_none is not None:
            with self._open() as directory:
                directory.apply([Write("cgroup.procs", str(pid))])

    # ---- limits ----------------------------------------------------------------------------------------------------

    def set(self, resources: Resources) -> None:
        """Limits of a cgroup in use; device rules are not touched."""
        unified = resources_v2.unified(resources.unified)
        with self._open() as directory:
            uses_bfq = _wants_weights(resources) and directory.has("io.bfq.weight")
            directory.apply(resources_v2.writes(resources, bfq=uses_bfq))
            self._apply_unified(directory, unified)

    def update(self, current: Resources, change: Resources) -> Resources:
        from shimd.cgroups import update

        merged = update.merge(current, change)
        if merged.memory.check_before_update:
            with self._open() as directory:
                memory, swap = directory.read_or("memory.current", ""), directory.read_or("memory.swap.current", "0")
            usage = int(memory) if memory else None
            update.check_memory(merged.memory, usage=usage, usage_with_swap=usage and usage + int(swap))
        try:
            self.set(merged)
        except RuntimeFailure:
            with suppress(RuntimeFailure):
                self.set(current)
            raise
        return merged

    # ---- processes -------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        return files.pids_of(self._group.mount, self._group.path)

    def freeze(self) -> None:
        from shimd.cgroups.freezer import freeze_v2

        with self._open() as directory:
            freeze_v2(directory)

    def thaw(self) -> None:
        from shimd.cgroups.freezer import thaw_v2

        with self._open() as directory:
            thaw_v2(directory)

    def frozen(self) -> bool:
        from shimd.cgroups.freezer import frozen_v2

        directory = self._open_if_there()
        if directory is None:
            return False
        with directory:
            return frozen_v2(directory)

    def wake_killed(self) -> None:
        """Nothing to do: SIGKILL reaches frozen tasks of v2."""

    def kill(self, signum: int = signal.SIGKILL) -> None:
        from shimd.cgroups import freezer, kill

        directory = self._open_if_there()
        if directory is None:
            return
        with directory:
            if signum == signal.SIGKILL and kill.kill_cgroup(directory):
                return
            held = freezer.frozen_v2(directory)
            kill.signal_frozen(
                signum,
                pids=self.pids,
                freeze=(lambda: None) if held else (lambda: freezer.freeze_v2(directory)),
                thaw=(lambda: None) if held else (lambda: freezer.thaw_v2(directory)),
            )

    # ---- figures ---------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        from shimd.cgroups import stats_v2

        with self._open() as directory:
            return stats_v2.read(directory)

    def oom_watch(self) -> Watch:
        from shimd.cgroups.oom import WatchV2

        return WatchV2(self._group.mount, self._group.path)


def _wants_weights(resources: Resources) -> bool:
    return bool(resources.block_io.weight or resources.block_io.weight_device)


def _enable(directory: Directory, controllers: tuple[str, ...]) -> None:
    missing = set(controllers) - set(directory.read("cgroup.subtree_control").split())
    if not missing:
        return
    wanted = [f"+{name}" for name in controllers if name in missing]
    try:
        directory.write("cgroup.subtree_control", " ".join(wanted))
    except OSError:
        for item in wanted:
            with suppress(OSError):
                directory.write("cgroup.subtree_control", item)


def _check_type(directory: Directory, *, needs_domain: bool) -> None:
    """Below a cgroup with processes or threads, a cgroup can only be threaded (cgroups(7), "Thread mode"), with
    limits for CPU and pids.
    """
    kind = directory.read_or("cgroup.type", "").strip()
    if kind in ("", "domain"):
        return
    if needs_domain:
        state = "an invalid state" if kind == "domain invalid" else f"{kind} mode"
        raise RuntimeFailure(
            f'cannot enter cgroupv2 "{directory.path}" with domain controllers -- it is in {state}',
            hint="a parent cgroup has processes of its own: use a cgroupsPath whose parents have none",
        )
    if kind == "domain invalid":
        with suppress(OSError):
            directory.write("cgroup.type", "threaded")
