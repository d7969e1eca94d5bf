"""``delete``: take a container apart. Every step tolerates that it is already done, so a delete that was cut short is
repeated.
"""

from __future__ import annotations

import os

from shimd.cgroups.manager import from_state
from shimd.contexts import suppress
from shimd.errors import DeadlineExceeded, NotFound, RuntimeFailure, ShimdError
from shimd.linux.process import pidfd_send_signal
from shimd.linux.signals import signal
from shimd.plan.ops import HookSpec
from shimd.plan.rootfs import hook_specs
from shimd.runtime import rdt
from shimd.runtime.control import derive_status, is_alive, members
from shimd.runtime.launch import wait_dead
from shimd.runtime.model import Container, Environment, launch_name
from shimd.runtime.process import hook_state
from shimd.runtime.state import EXEC_EXIT_SUFFIX, Making, StateDir
from shimd.runtime.status import Operation, Status, check

_KILL_TIMEOUT = 10.0  # seconds; only uninterruptible sleep in the kernel keeps a killed process


def delete(env: Environment, container: Container, *, force: bool) -> tuple[str, ...]:
    """See Runtime.delete."""
    check(Operation.FORCE_DELETE if force else Operation.DELETE, derive_status(container), container.id)
    poststop, problems = _poststop_hooks(container)
    _end_processes(container)
    container.cgroup.destroy()
    rdt.remove(rdt.group_of(container.state))
    env.launcher.forget(*_launch_names(container))
    container.directory.remove()
    if poststop:
        from shimd.runtime.hooks import run_hooks_through

        state = hook_state(container.id, Status.STOPPED, 0, container.bundle, container.state.annotations)
        problems += run_hooks_through("poststop", poststop, state, cwd=container.bundle)
    # After the hooks, which may want to see what the container has left.
    _unmount_rootfs(container.bundle, container.state.rootfs_mounts)
    container.close()
    return tuple(problems)


def remove_remains(env: Environment, directory: StateDir, name: str) -> None:
    """Of a create that was cut short by the death of the creator. Its init, launched as ``name``, ends by that."""
    env.launcher.end(name)
    try:
        state = directory.load_prepared()
    except (NotFound, RuntimeFailure):
        making = directory.load_making()
        if making is not None:
            _remove_early(env, making)
    else:
        cgroup = from_state(env.host, state.cgroup)
        if members(cgroup):
            cgroup.kill()
        cgroup.destroy()
        rdt.remove(rdt.group_of(state))
        _unmount_rootfs(state.bundle, state.rootfs_mounts)
    directory.remove()


def _remove_early(env: Environment, making: Making) -> None:
    """Of a creator that did not come as far as to write down the process."""
    cgroup = from_state(env.host, making.cgroup)
    if making.has_cgroup:
        if members(cgroup):
            cgroup.kill()
        cgroup.destroy()
    elif not members(cgroup):  # half made; or it would have been refused, as it is used by others
        cgroup.destroy()
    _unmount_rootfs(making.bundle, making.rootfs_mounts)


def _unmount_rootfs(bundle: str, mounts: tuple[str, ...]) -> None:
    if mounts:
        from shimd.runtime.rootfs import unmount_rootfs

        unmount_rootfs(bundle, mounts)


def _poststop_hooks(container: Container) -> tuple[tuple[HookSpec, ...], list[str]]:
    """And what is wrong, when the configuration cannot be read any more: that must not keep the container for ever."""
    try:
        return hook_specs(container.spec.hooks.poststop), []
    except ShimdError as error:
        return (), [f"poststop hooks are not run: {error}"]


def _end_processes(container: Container) -> None:
    """Init, and whatever its death does not end. Raises DeadlineExceeded."""
    if is_alive(container):
        with suppress(ProcessLookupError):
            pidfd_send_signal(container.pidfd, signal.SIGKILL)
        container.cgroup.wake_killed()
        if not wait_dead(container.pidfd, _KILL_TIMEOUT):
            raise DeadlineExceeded(f"container {container.id} is still alive {_KILL_TIMEOUT:.0f} s after SIGKILL")
    if not container.state.own_pid_namespace and members(container.cgroup):
        container.cgroup.kill()


def _launch_names(container: Container) -> list[str]:
    """Init's, and those of the execs that have left an exit record."""
    exec_ids = [
        name.removesuffix(EXEC_EXIT_SUFFIX)
        for name in os.listdir(container.directory.fd)
        if name.endswith(EXEC_EXIT_SUFFIX)
    ]
    return [launch_name(container.namespace, container.id, exec_id) for exec_id in ("", *exec_ids)]
