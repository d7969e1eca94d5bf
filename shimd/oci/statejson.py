"""The JSON documents that tell a container's state: to hooks, and to whoever asks ``state``."""

from __future__ import annotations

from shimd import jsontext
from shimd.oci.spec import OCI_VERSION
from shimd.typed import Any, Mapping


def hook_state(
    *, container_id: str, status: str, pid: int, bundle: str, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """What a hook reads on its standard input; ``pid`` 0 (no process any more) and no annotations are left out."""
    state: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": container_id, "status": status}
    if pid:
        state["pid"] = pid
    state["bundle"] = bundle
    if annotations:
        state["annotations"] = dict(annotations)
    return state


def process_state(pid: int, metadata: str | None, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a seccomp agent gets with the one descriptor that ``fds`` names; ``state`` is that of the container."""
    document: dict[str, Any] = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid}
    if metadata is not None:
        document["metadata"] = metadata
    return document | {"state": state}


def state_document(
    *,
    container_id: str,
    status: str,
    pid: int,
    bundle: str,
    rootfs: str,
    created: str,
    annotations: Mapping[str, str],
    owner: str = "",
) -> dict[str, Any]:
    """What ``state`` prints, and ``list`` with the ``owner``; ``created`` in RFC 3339, ``pid`` 0 when stopped."""
    state: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "id": container_id,
        "pid": pid,
        "status": status,
        "bundle": bundle,
        "rootfs": rootfs,
        "created": created,
    }
    if annotations:
        state["annotations"] = dict(annotations)
    return state | {"owner": owner}


def dumps(state: Mapping[str, Any]) -> str:
    """As hooks get it: one line."""
    return jsontext.dumps(state)
