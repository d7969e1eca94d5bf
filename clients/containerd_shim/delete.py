"""``delete``: runs after each task. Normally the daemon has removed the container by then, and there is nothing to do:
its state directory tells that, without a call.
"""

from __future__ import annotations

import os
import time

from clients.containerd_shim import wire
from clients.containerd_shim.errors import CallFailed, UsageError
from clients.containerd_shim.flags import Flags
from clients.containerd_shim.places import Places

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    from clients.containerd_shim.ttrpc import Connection

SERVICE = "shimd.v1.Containerds"
NOT_FOUND = 5  # gRPC's number
SIGKILL = 9
KILLED = 128 + SIGKILL

_SECONDS = 4.0  # for each call: containerd gives the whole clean-up 5


def delete(flags: Flags, namespace: str, places: Places) -> bytes:
    """The DeleteResponse."""
    container_id = flags.required("id")
    for name in (namespace, container_id):
        if "/" in name or name in (".", ".."):
            raise UsageError(f"{name!r} is no identifier")
    response = b""
    if os.path.lexists(places.container(namespace, container_id)):
        response = _remove(places, namespace, container_id)
    _unmount_rootfs(os.path.join(flags.values.get("bundle") or os.getcwd(), "rootfs"))
    return response or delete_response(0, KILLED, time.time_ns())


def delete_response(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    timestamp = wire.number(1, exited_at_ns // 10**9) + wire.number(2, exited_at_ns % 10**9)
    return wire.number(1, pid) + wire.number(2, exit_status) + wire.text(3, timestamp)


def _remove(places: Places, namespace: str, container_id: str) -> bytes:
    from clients.containerd_shim.ttrpc import Connection

    try:
        connection = Connection(places.ttrpc_socket, _SECONDS)
    except (FileNotFoundError, ConnectionRefusedError):
        from clients.containerd_shim import cleanup

        return cleanup.remove(places, namespace, container_id)
    with connection:
        return _through_daemon(connection, namespace, container_id)


def _through_daemon(connection: Connection, namespace: str, container_id: str) -> bytes:
    """b"" when the daemon has no such container any more."""
    try:
        response = connection.call(SERVICE, "Remove", wire.text(1, container_id), namespace=namespace)
    except CallFailed as error:
        if error.code == NOT_FOUND:
            return b""
        raise
    numbers = wire.number(1, wire.last_number(response, 1)) + wire.number(2, wire.last_number(response, 2))
    return numbers + wire.text(3, wire.last_bytes(response, 3))


def _unmount_rootfs(rootfs: str) -> None:
    """What a daemon that was killed in the middle of a create has left; nothing where nothing is mounted."""
    try:
        is_mounted = os.lstat(rootfs).st_dev != os.lstat(os.path.dirname(rootfs)).st_dev
    except FileNotFoundError:
        return
    if is_mounted:
        from clients.containerd_shim import cleanup

        cleanup.unmount(rootfs)
