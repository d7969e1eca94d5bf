"""Removes a container of a daemon that is gone, with the runtime itself. Its import takes a while: it is paid here
alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from clients.containerd_shim.delete import KILLED, delete_response
from clients.containerd_shim.places import Places
from shimd.errors import NotFound, ShimdError, Unavailable
from shimd.host.facts import probe
from shimd.keeper.client import KeeperClient, read_exit_file
from shimd.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from shimd.runtime.container import Runtime
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.launch import KeeperLauncher, Launcher
from shimd.runtime.model import Container
from shimd.runtime.state import EXIT_FILE, SANDBOX_ANNOTATION


def remove(places: Places, namespace: str, container_id: str) -> bytes:
    """The DeleteResponse, with the true exit status if the keeper wrote one down. Raises OSError."""
    runtime = Runtime(probe(), _launcher(places), f"{places.state}/containers")
    try:
        try:
            container = runtime.load(container_id, namespace=namespace)
        except NotFound:
            runtime.remove_stray(container_id, namespace=namespace)
            return b""
        ended = read_exit_file(f"{places.container(namespace, container_id)}/{EXIT_FILE}")
        pid = container.pid
        for each in (*_members(runtime, namespace, container), container):
            runtime.delete(each, force=True)
    except NotFound:
        return b""
    except ShimdError as error:
        raise OSError(f"removing container {container_id}: {error}") from error
    if ended is None:
        return delete_response(pid, KILLED, time.time_ns())
    return delete_response(pid, ended.code, ended.exited_at_ns)


def _members(runtime: Runtime, namespace: str, sandbox: Container) -> Iterator[Container]:
    """The containers of a pod, if this holds its namespaces. To a containerd that puts a pod's containers into one
    shim they have none of their own, and it has only the sandbox deleted.
    """
    if sandbox.state.annotations.get(SANDBOX_ANNOTATION) != sandbox.id:
        return
    for container in runtime.list(namespace=namespace).containers:
        if container.id != sandbox.id and container.state.annotations.get(SANDBOX_ANNOTATION) == sandbox.id:
            yield container
        else:
            container.close()


def _launcher(places: Places) -> Launcher:
    """The keeper, which may well be there still, is to forget the container."""
    try:
        return KeeperLauncher(KeeperClient.connect(places.state))
    except (Unavailable, OSError):
        return DirectLauncher()


def unmount(rootfs: str) -> None:
    umount2(rootfs, MNT_DETACH | UMOUNT_NOFOLLOW)
