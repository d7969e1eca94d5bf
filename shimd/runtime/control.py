"""Operations on a container that exists: its status, signals, pause and resume, limits, figures."""

from __future__ import annotations

import os

from shimd.contexts import closing
from shimd.errors import NotFound
from shimd.linux import proc
from shimd.linux.process import pidfd_send_signal
from shimd.linux.signals import signal
from shimd.oci import statejson
from shimd.runtime.launch import is_dead
from shimd.runtime.model import Container, Environment
from shimd.runtime.state import START_SOCKET
from shimd.runtime.status import Operation, Status, check
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.cgroups.manager import CgroupManager
    from shimd.cgroups.stats import Stats
    from shimd.oci.model import Resources


def derive_status(container: Container) -> Status:
    """From the process, the freezer and the start socket; nothing stored is trusted. A frozen container is paused,
    created or not, as long as its init lives: a cgroup v2 stays frozen when all in it are dead.
    """
    if not is_alive(container):
        return Status.STOPPED
    if container.cgroup.frozen():
        return Status.PAUSED
    return Status.CREATED if container.directory.exists(START_SOCKET) else Status.RUNNING


def is_alive(container: Container) -> bool:
    """Whether init runs: a zombie does not. The pidfd was verified when it was opened, so no pid is looked at."""
    return container.pidfd >= 0 and not is_dead(container.pidfd)


def is_same_process(pid: int, start_time: int) -> bool:
    """Whether ``pid`` is alive and the process of that start time, not a later one with the same number."""
    try:
        found = proc.stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return found.state not in ("Z", "X") and found.starttime == start_time


def start_time(pid: int) -> int:
    """0 when it is dead already: an init has left word why, which is still to be read."""
    try:
        return proc.stat(pid).starttime
    except (FileNotFoundError, ProcessLookupError):
        return 0


def state_document(container: Container) -> dict[str, Any]:
    """What ``state`` prints."""
    status = derive_status(container)
    state = container.state
    return statejson.state_document(
        container_id=state.id,
        status=status,
        pid=0 if status is Status.STOPPED else state.pid,
        bundle=state.bundle,
        rootfs=state.rootfs,
        created=state.created,
        annotations=state.annotations,
    )


def kill(container: Container, number: int, *, everyone: bool) -> None:
    """Signal init, or ``everyone`` in the container's cgroup, init dead or not.

    Where init does not end the others by its death (no pid namespace of its own), SIGKILL is for everyone too, as long
    as one of them lives. Raises NotFound when init is dead, unless ``everyone``.
    """
    survivors = number == signal.SIGKILL and not container.state.own_pid_namespace and members(container.cgroup)
    if not survivors:
        check(Operation.KILL_ALL if everyone else Operation.KILL, derive_status(container), container.id)
    if everyone or survivors:
        container.cgroup.kill(number)
        return
    try:
        pidfd_send_signal(container.live_pidfd(), number)
    except ProcessLookupError as error:
        raise NotFound("container not running") from error
    if number == signal.SIGKILL:
        container.cgroup.wake_killed()


def members(cgroup: CgroupManager) -> list[int]:
    """The processes of a cgroup; none where a user's container has got none."""
    return cgroup.pids() if cgroup.exists() else []


def pause(container: Container) -> None:
    check(Operation.PAUSE, derive_status(container), container.id)
    container.cgroup.freeze()


def resume(container: Container) -> None:
    check(Operation.RESUME, derive_status(container), container.id)
    container.cgroup.thaw()


def update(env: Environment, container: Container, change: Resources) -> tuple[str, ...]:
    """Change limits and write down the result; returns warnings. Raises InvalidSpec, RuntimeFailure with the old
    limits in force.
    """
    check(Operation.UPDATE, derive_status(container), container.id)
    from shimd.oci.validate import validate_resources
    from shimd.oci.write import resources_document

    warnings = validate_resources(change, env.host)
    merged = container.cgroup.update(container.resources, change)
    container.state = container.state._replace(changed_resources=resources_document(merged))
    container.directory.save(container.state)
    return warnings


def stats(container: Container) -> Stats:
    check(Operation.STATS, derive_status(container), container.id)
    return container.cgroup.stats()


def pod_stats(env: Environment, container: Container) -> Stats:
    check(Operation.STATS, derive_status(container), container.id)
    from shimd.cgroups.manager import manager

    parent = os.path.dirname(container.spec.linux.cgroups_path or "")
    if parent in ("", "/"):
        return container.cgroup.stats()
    with closing(manager(env.host, cgroups_path=parent, container_id=container.id)) as cgroup:
        return cgroup.stats()


def pids(container: Container) -> list[int]:
    """All processes of the container, execs included, in the runtime's pid namespace; empty when stopped."""
    check(Operation.PIDS, derive_status(container), container.id)
    return container.cgroup.pids()
