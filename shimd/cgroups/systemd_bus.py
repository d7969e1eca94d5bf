"""What we ask of systemd, the machine's or a user's, over D-Bus.

A call that changes something makes a job, whose end is told by the signal JobRemoved. systemd sends that to those who
made the job, on a bus as a broadcast, for which one has to ask; on its own private socket all of them come unasked.
"""

from __future__ import annotations

import os
import re

from jeepney.bus import get_connectable_addresses

from shimd.cgroups.dbus import Body, CallFailed, Connection, Target
from shimd.cgroups.systemd_properties import Property
from shimd.contexts import suppress
from shimd.errors import DeadlineExceeded, RuntimeFailure, Unavailable
from shimd.typed import Iterator, Sequence

_SERVICE = "org.freedesktop.systemd1"
_MANAGER = Target(_SERVICE, "/org/freedesktop/systemd1", f"{_SERVICE}.Manager")
_PROPERTIES = _MANAGER._replace(interface="org.freedesktop.DBus.Properties")
_PEER = _MANAGER._replace(interface="org.freedesktop.DBus.Peer")
_JOB_REMOVED = f"type='signal',sender='{_SERVICE}',interface='{_MANAGER.interface}',member='JobRemoved'"
_JOB_TIMEOUT = 30.0  # seconds

_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_USER_HINT = "a user's containers need a user session with D-Bus (Debian: dbus-user-session)"


class Systemd:
    """One connection, a context manager. Raises Unavailable and DeadlineExceeded, and RuntimeFailure when systemd
    refuses.
    """

    def __init__(self, *, user: bool) -> None:
        self._bus = _connect(user=user)

    def __enter__(self) -> Systemd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._bus.close()

    # ---- what it is ------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """Of "252.39-1~deb12u2" or "v245-1.fc32" the number."""
        text = self._property("Version")
        found = re.match(r"v?(\d+)", text)
        if found is None:
            raise RuntimeFailure(f"systemd has an unknown version: {text!r}")
        return int(found[1])

    def control_group(self) -> str:
        """The cgroup below which it makes those of units."""
        return self._property("ControlGroup")

    def _property(self, name: str) -> str:
        attempt = f"read the property {name} of systemd"
        ((_, value),) = self._ask(attempt, "Get", "ss", (_MANAGER.interface, name), target=_PROPERTIES)
        return str(value)

    # ---- units -----------------------------------------------------------------------------------------------------

    def start_transient_unit(self, name: str, properties: Sequence[Property]) -> None:
        """The unit is there when this returns. One of that name that failed is in the way until it is reset."""
        body: Body = (name, "replace", list(properties), [])
        try:
            job = self._start(body)
        except CallFailed as error:
            if not error.name.endswith(".UnitExists"):
                raise _refused(f"start unit {name}", error) from error
            self.reset_failed_unit(name)
            try:
                job = self._start(body)
            except CallFailed as again:
                raise _refused(f"start unit {name}", again) from again
        self._await_start(name, job)

    def _start(self, body: Body) -> str:
        (job,) = self._bus.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        return str(job)

    def _await_start(self, name: str, job: str) -> None:
        try:
            result = self._job_result(job)
        except DeadlineExceeded as error:
            self.reset_failed_unit(name)
            raise DeadlineExceeded(f"timeout waiting for systemd to create {name}") from error
        if result != "done":
            self.reset_failed_unit(name)
            raise RuntimeFailure(f"error creating systemd unit `{name}`: got `{result}`")

    def stop_unit(self, name: str) -> None:
        """Gone when this returns, a failed one too; one that is not there is fine."""
        try:
            (job,) = self._bus.call(_MANAGER, "StopUnit", "ss", (name, "replace"))
        except CallFailed as error:
            if not error.name.endswith(".NoSuchUnit"):
                raise _refused(f"stop unit {name}", error) from error
        else:
            try:
                self._job_result(job)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"timed out while waiting for systemd to remove {name}") from error
        self.reset_failed_unit(name)

    def reset_failed_unit(self, name: str) -> None:
        """Let systemd forget it; mostly it has already."""
        with suppress(CallFailed):
            self._bus.call(_MANAGER, "ResetFailedUnit", "s", (name,))

    def set_unit_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Until the next boot. In force when this returns: systemd changes cgroups after its answer, but before it
        reads another call.
        """
        body = (name, True, list(properties))
        self._ask(f"set properties of unit {name}", "SetUnitProperties", "sba(sv)", body)
        self._ask("wait for systemd", "Ping", target=_PEER)

    def attach_processes_to_unit(self, name: str, sub: str, pids: Sequence[int]) -> None:
        """``sub`` is a cgroup below the unit's, with a slash in front; systemd has it made where it is missing."""
        body = (name, sub, list(pids))
        self._ask(f"attach a process to unit {name}", "AttachProcessesToUnit", "ssau", body)

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _ask(
        self, attempt: str, method: str, signature: str = "", body: Body = (), *, target: Target = _MANAGER
    ) -> Body:
        try:
            return self._bus.call(target, method, signature, body)
        except CallFailed as error:
            raise _refused(attempt, error) from error

    def _job_result(self, job: str) -> str:
        """ "done", or "canceled", "timeout", "failed", "dependency", "skipped"."""
        *_, result = self._bus.wait_signal("JobRemoved", lambda body: body[1] == job, _JOB_TIMEOUT)
        return str(result)


def _refused(attempt: str, error: CallFailed) -> RuntimeFailure:
    return RuntimeFailure(f"unable to {attempt}: {error}")


# ---- connecting ------------------------------------------------------------------------------------------------------


def _connect(*, user: bool) -> Connection:
    """To the bus, or where there is none to systemd itself. The first failure is the one that is told."""
    failure: Exception | None = None
    for address, is_bus in _addresses(user=user):
        try:
            connection = Connection(address, is_bus=is_bus)
        except (OSError, CallFailed, Unavailable, DeadlineExceeded) as error:
            failure = failure or error
            continue
        if is_bus:
            connection.add_match(_JOB_REMOVED)
        return connection
    text = getattr(failure, "strerror", None) or failure or "no bus is known"
    raise Unavailable(f"connect to D-Bus: {text}", hint=_USER_HINT if user else "") from failure


def _addresses(*, user: bool) -> Iterator[tuple[str, bool]]:
    """Where to find systemd, and whether that is a bus."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if user:
        yield from _of_bus(os.environ.get("DBUS_SESSION_BUS_ADDRESS", ""))
        if runtime:
            yield f"{runtime}/bus", True
            yield f"{runtime}/systemd/private", False
    else:
        yield from _of_bus(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "") or _SYSTEM_BUS)
        yield "/run/systemd/private", False


def _of_bus(text: str) -> Iterator[tuple[str, bool]]:
    """An address of the D-Bus specification, as in the environment; malformed ones are none."""
    with suppress(ValueError, KeyError, RuntimeError):
        for address in get_connectable_addresses(text) if text else ():
            yield address, True
