"""The systemd driver: the cgroup is that of a unit, which systemd makes round the container's first process.

A scope cannot be without a process, so none can be born in it. Init begins outside, does nothing but wait at the sync
point "cgroup", and goes on when ``entry`` has put it in: the unit is there with its limits then, and what systemd does
not know is written to the cgroup's files. Everything after that is the business of the managers for v1 and v2, except
that limits with a property are told to systemd first (it writes all that it knows again whenever it likes), and that
a unit is stopped before its cgroup is removed.

A unit with no process left is stopped by systemd itself, and its cgroup is gone then.
"""

from __future__ import annotations

import os

from shimd.cgroups import devices, oom, resources_v1, resources_v2, systemd_properties
from shimd.cgroups.files import Directory, open_directory, open_if_there
from shimd.cgroups.place import Group, clean, v1_groups
from shimd.cgroups.systemd_properties import Property
from shimd.cgroups.systemd_unit import Unit, find_unit
from shimd.cgroups.v1 import V1Manager, device_writes
from shimd.cgroups.v2 import V2Manager
from shimd.errors import FailedPrecondition, InternalError, Unimplemented
from shimd.host.facts import Hierarchy, HostFacts
from shimd.oci.model import Resources
from shimd.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimd.cgroups.systemd_bus import Systemd

Manager = V1Manager | V2Manager  # one of the subclasses below
Properties = Callable[[int], list[Property]]  # for a version of systemd


def _connect(*, user: bool) -> Systemd:
    """D-Bus takes longer to load than a container to make, and many calls of a command line have no use for it."""
    from shimd.cgroups.systemd_bus import Systemd

    return Systemd(user=user)


class _Handle:
    """The unit of one container at systemd. ``started``: it is there, and ours to stop."""

    def __init__(self, unit: Unit, *, user: bool, started: bool) -> None:
        self.unit = unit
        self.user = user
        self.started = started
        self._systemd: Systemd | None = None
        self._properties: list[Property] = []

    def prepare(self, properties: Properties) -> None:
        """All that can fail without a process. The connection is kept for ``start``."""
        self._systemd = _connect(user=self.user)
        self._properties = properties(self._systemd.version())

    def start(self, pid: int, *, v2: bool) -> None:
        if self._systemd is None:
            raise InternalError(f"unit {self.unit.name} was not prepared")
        properties = systemd_properties.of_unit(self.unit, pid, v2=v2) + self._properties
        self._systemd.start_transient_unit(self.unit.name, properties)
        self.started = True
        self.close()

    def close(self) -> None:
        if self._systemd is not None:
            self._systemd.close()
            self._systemd = None

    def set(self, properties: Properties) -> None:
        with _connect(user=self.user) as systemd:
            wanted = properties(systemd.version())
            if wanted:
                systemd.set_unit_properties(self.unit.name, wanted)

    def attach(self, pid: int, sub: str) -> None:
        with _connect(user=self.user) as systemd:
            systemd.attach_processes_to_unit(self.unit.name, f"/{clean(sub)}", [pid])

    def stop(self) -> None:
        self.close()
        if self.started:
            with _connect(user=self.user) as systemd:
                systemd.stop_unit(self.unit.name)

    def to_state(self) -> dict[str, object]:
        return {"unit": list(self.unit), "user": self.user}


class SystemdV2Manager(V2Manager):
    def __init__(self, handle: _Handle, group: Group, host: HostFacts, annotations: list[Property]) -> None:
        # A user's device programs may be refused, as in a user namespace.
        unprivileged = host.in_userns or host.euid != 0
        super().__init__(group, controllers=host.unified_controllers, rootless=unprivileged)
        self._handle = handle
        self._annotations = annotations
        self._resources = Resources()

    def to_state(self) -> dict[str, object]:
        return super().to_state() | self._handle.to_state()

    # ---- making and removing ---------------------------------------------------------------------------------------

    def create(self, resources: Resources) -> None:
        self._resources = resources._replace(cpu=systemd_properties.round_quota(resources.cpu))
        resources_v2.writes(resources)
        resources_v2.unified(resources.unified)
        directory = open_if_there(self._group.mount, self._group.path)
        if directory is not None:
            with directory:
                self._refuse_used(directory)
        self._handle.prepare(self._first_properties)

    def _first_properties(self, version: int) -> list[Property]:
        resources = self._resources
        return [
            *self._annotations,
            *systemd_properties.of_oom_group(resources.unified, version),
            *([] if self._handle.user else systemd_properties.of_devices(devices.wanted(resources.devices), version)),
            *systemd_properties.of_resources_v2(resources, version),
        ]

    def _make_round(self, pid: int) -> None:
        self._handle.start(pid, v2=True)
        super().create(self._resources)
        if self._handle.unit.is_slice:
            self.apply(pid)

    def _refuse_used(self, directory: Directory) -> None:
        if not self._handle.started:
            super()._refuse_used(directory)

    def destroy(self) -> None:
        self._handle.stop()
        super().destroy()

    def close(self) -> None:
        self._handle.close()

    # ---- joining ---------------------------------------------------------------------------------------------------

    def cgroup_fd(self) -> int:
        return -1

    def entry(self) -> Callable[[int], None]:
        return self._make_round

    def exec_cgroup_fd(self, init_pid: int, subs: Mapping[str, str] = {}) -> int:
        return -1 if self._handle.user else super().exec_cgroup_fd(init_pid, subs)

    def exec_entry(self, init_pid: int, subs: Mapping[str, str] = {}) -> Callable[[int], None] | None:
        """A user may not move a process from outside into a cgroup of theirs; the machine's systemd does it when the
        user's asks for it.
        """
        if not self._handle.user:
            return None
        path, own = self._exec_path(init_pid, subs), self._group.path
        if path != own and not path.startswith(f"{own}/"):
            raise FailedPrecondition(f'the container\'s init is in another cgroup: "{path}"')
        return lambda pid: self._handle.attach(pid, path.removeprefix(own) or "/")

    # ---- limits ----------------------------------------------------------------------------------------------------

    def set(self, resources: Resources) -> None:
        self._handle.set(lambda version: systemd_properties.of_resources_v2(resources, version))
        super().set(resources._replace(cpu=systemd_properties.round_quota(resources.cpu)))

    # ---- figures ---------------------------------------------------------------------------------------------------

    def oom_watch(self) -> oom.Watch:
        return oom.WatchUnit(self._group.mount, self._group.path)


class SystemdV1Manager(V1Manager):
    """systemd puts processes into the hierarchies that it knows; the others are ours."""

    def __init__(self, handle: _Handle, groups: tuple[Group, ...], annotations: list[Property]) -> None:
        super().__init__(groups)
        self._handle = handle
        self._annotations = annotations
        self._resources = Resources()

    def to_state(self) -> dict[str, object]:
        return super().to_state() | self._handle.to_state()

    # ---- making and removing ---------------------------------------------------------------------------------------

    def create(self, resources: Resources) -> None:
        self._resources = resources._replace(cpu=systemd_properties.round_quota(resources.cpu))
        resources_v1.writes(resources)
        for group in self._groups:
            if os.path.isdir(group.directory):
                self._refuse_used(group)
        self._handle.prepare(self._first_properties)

    def _first_properties(self, version: int) -> list[Property]:
        resources = self._resources
        return [
            *self._annotations,
            *systemd_properties.of_devices(devices.wanted(resources.devices), version),
            *systemd_properties.of_resources_v1(resources, version),
        ]

    def _make_round(self, pid: int) -> None:
        self._handle.start(pid, v2=False)
        super().create(self._resources)
        super().close()  # nobody is to join by itself
        self.apply(pid)

    def _refuse_used(self, group: Group) -> None:
        if not self._handle.started:
            super()._refuse_used(group)

    def destroy(self) -> None:
        self._handle.stop()
        super().destroy()

    def close(self) -> None:
        self._handle.close()
        super().close()

    # ---- joining ---------------------------------------------------------------------------------------------------

    def cgroup_fd(self) -> int:
        return -1

    def open_procs(self) -> list[int]:
        return []

    def entry(self) -> Callable[[int], None]:
        return self._make_round

    # ---- limits ----------------------------------------------------------------------------------------------------

    def set(self, resources: Resources) -> None:
        """systemd sets device rules anew with every change, denying all first: nobody may run in that moment."""
        held = self.frozen() or self._find("freezer") is None
        if not held:
            self.freeze()
        try:
            self._handle.set(lambda version: systemd_properties.of_resources_v1(resources, version))
            self._set_devices(resources)
        finally:
            if not held:
                self.thaw()
        super().set(resources._replace(cpu=systemd_properties.round_quota(resources.cpu)))

    def _set_devices(self, resources: Resources) -> None:
        group = self._find("devices")
        if group is not None:
            with open_directory(group.mount, group.path) as directory:
                directory.apply(device_writes(group, devices.wanted(resources.devices), fresh=False))


# ---- finding ---------------------------------------------------------------------------------------------------------


def new_manager(host: HostFacts, cgroups_path: str, container_id: str, annotations: Mapping[str, str]) -> Manager:
    """For a container to be made. Raises InvalidSpec, FailedPrecondition where systemd does not run."""
    user = host.euid != 0 or host.in_userns
    unit = find_unit(cgroups_path, container_id, user=user)
    properties = systemd_properties.of_annotations(annotations)
    if not host.systemd:
        raise FailedPrecondition("systemd is to make the cgroup, but does not run here")
    handle = _Handle(unit, user=user, started=False)
    if host.cgroup_mode == "v2":
        return SystemdV2Manager(handle, _v2_group(host.unified, unit, user=user), host, properties)
    if user:
        raise Unimplemented("cannot use the systemd cgroup driver on cgroup v1 without root")
    groups = v1_groups(host.hierarchies, host.unified, f"/{unit.path}", container_id, "")
    return SystemdV1Manager(handle, groups, properties)


def _v2_group(unified: Hierarchy | None, unit: Unit, *, user: bool) -> Group:
    assert unified is not None
    above = ""
    if user:
        with _connect(user=True) as systemd:
            above = systemd.control_group()
    return Group((), unified.mount_point, clean(f"{above}/{unit.path}"))


def from_state(host: HostFacts, groups: tuple[Group, ...], document: Mapping[str, object]) -> Manager:
    """Of a container that is there."""
    match document:
        case {"unit": [str(name), str(parent), str(path), str(title)], "user": bool(user), "driver": "v1" | "v2"}:
            handle = _Handle(Unit(name, parent, path, title), user=user, started=True)
        case _:
            raise InternalError(f"unusable systemd unit in the saved state: {document.get('unit')!r}")
    if document["driver"] == "v1":
        return SystemdV1Manager(handle, groups, [])
    return SystemdV2Manager(handle, groups[0], host, [])
