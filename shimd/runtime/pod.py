"""What the containers of a pod have in common beside namespaces: three files of /etc and a /dev/shm.

    <state directory of the sandbox>/pod/hostname, hosts, resolv.conf
                                         shm/       a tmpfs, unless the pod has the node's IPC
                                         rootfs/    the root of the process that holds the namespaces

They belong to the sandbox's own container, go away with it, and are bound into each container that names the sandbox
in its annotations. (With a pause container containerd's CRI plugin does the same; it leaves it to the runtime that
has sandboxes.)
"""

from __future__ import annotations

import json
import os
from errno import EINVAL
from typing import Any

from shimd.contexts import suppress
from shimd.linux import mount as m
from shimd.linux.process import CLONE_NEWNET, owning_user_namespace
from shimd.oci.model import Spec
from shimd.plan.ops import NamespaceFile
from shimd.records import Record
from shimd.runtime import holder
from shimd.runtime.namespaces import open_namespace
from shimd.runtime.state import POD_DIRECTORY
from shimd.typed import Iterable

SHM_BYTES = 64 << 20

_PROGRAM = "shimd-pod"
_FILES = ("hostname", "hosts", "resolv.conf")
_SHM = "shm"
_ROOTFS = "rootfs"
_PLACES = ("dev", "proc")
_SHM_PLACE = "/dev/shm"


class PodFiles(Record):
    """``resolv_conf`` is a copy of the node's when None; ``owner`` the uid and gid that root of the pod has outside."""

    hostname: str = ""
    resolv_conf: str | None = None
    own_shm: bool = True
    owner: tuple[int, int] = (0, 0)


class Owner:
    """The user namespace that a pod's network was made in, for as long as this is open. Raises InvalidArgument."""

    def __init__(self, netns_path: str) -> None:
        network = open_namespace(NamespaceFile("", netns_path, CLONE_NEWNET))
        try:
            self._fd = owning_user_namespace(network)
        finally:
            os.close(network)

    @property
    def path(self) -> str:
        """For this process."""
        return f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)


def config(base: dict[str, Any], state_directory: str) -> bytes:
    """config.json of the container that holds the pod's namespaces; ``base`` says which, and the limits."""
    root = os.path.join(os.path.realpath(state_directory), POD_DIRECTORY, _ROOTFS)
    linux = base.get("linux", {})
    namespaces = [entry for entry in linux.get("namespaces", []) if entry.get("type") != "mount"]
    # With a /dev of its own making nobody makes devices in it.
    mounts = [{"destination": "/dev", "type": "bind", "source": f"{root}/dev", "options": ["bind", "ro"]}]
    if any(entry.get("type") == "user" for entry in namespaces):
        # To set sysctls; in a user namespace there is no other way to a procfs than a mount of it.
        mounts.append(
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}
        )
    document = {
        "ociVersion": "1.2.0",
        **base,
        "process": {
            "args": [f"/{_PROGRAM}"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "mounts": mounts,
        "linux": {**linux, "namespaces": [*namespaces, {"type": "mount"}]},
    }
    return json.dumps(document).encode()


def root_of(base: dict[str, Any]) -> tuple[int, int]:
    """The uid and gid outside of root in a container of this configuration."""
    linux = base.get("linux", {})
    uid, gid = (_mapped_root(linux.get(key, ())) for key in ("uidMappings", "gidMappings"))
    return uid, gid


def _mapped_root(ranges: Iterable[dict[str, Any]]) -> int:
    """Wrong ones are for who reads the configuration to complain of."""
    return next((r["hostID"] for r in ranges if r.get("containerID") == 0 and type(r.get("hostID")) is int), 0)


def make(state_directory: str, files: PodFiles) -> None:
    """Raises OSError, and leaves the rest to ``remove``; Unimplemented on a machine without a program."""
    program = holder.image()
    folder = os.path.join(state_directory, POD_DIRECTORY)
    _make_directory(folder, 0o711)
    resolver = files.resolv_conf
    contents = (
        f"{files.hostname or os.uname().nodename}\n".encode(),
        _copied("/etc/hosts"),
        _copied("/etc/resolv.conf") if resolver is None else resolver.encode(),
    )
    for name, data in zip(_FILES, contents, strict=True):
        _write(os.path.join(folder, name), data)
        os.chown(os.path.join(folder, name), *files.owner)
    for place in ("", *_PLACES):
        _make_directory(os.path.join(folder, _ROOTFS, place), 0o755)
    _write(os.path.join(folder, _ROOTFS, _PROGRAM), program, 0o755)
    if files.own_shm:
        shm = os.path.join(folder, _SHM)
        os.mkdir(shm, 0o700)
        flags = m.MS_NOEXEC | m.MS_NOSUID | m.MS_NODEV
        uid, gid = files.owner
        m.mount("shm", shm, "tmpfs", flags, f"mode=1777,size={SHM_BYTES},uid={uid},gid={gid}")


def remove(state_directory: str) -> None:
    """What there is of it. By name: a container may have put anything into its part, which is not walked through."""
    folder = os.path.join(state_directory, POD_DIRECTORY)
    shm = os.path.join(folder, _SHM)
    try:
        m.umount2(shm, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != EINVAL and not isinstance(error, FileNotFoundError):
            raise
    rootfs = os.path.join(folder, _ROOTFS)
    for file in (*(os.path.join(folder, name) for name in _FILES), os.path.join(rootfs, _PROGRAM)):
        with suppress(FileNotFoundError):
            os.unlink(file)
    for place in (shm, *(os.path.join(rootfs, place) for place in _PLACES), rootfs, folder):
        with suppress(FileNotFoundError):
            os.rmdir(place)


def amended(data: bytes, spec: Spec, state_directory: str) -> bytes:
    """A container's config.json with what is the pod's mounted, where it has nothing else in those places."""
    folder = os.path.join(state_directory, POD_DIRECTORY)
    if not os.path.isdir(folder):
        return data
    document = json.loads(data)
    mounts = document.setdefault("mounts", [])
    taken = {os.path.normpath(mount.destination) for mount in spec.mounts}
    access = "ro" if spec.root.readonly else "rw"
    for name in _FILES:
        if f"/etc/{name}" not in taken:
            mounts.append(_bind(f"{folder}/{name}", f"/etc/{name}", access))
    if os.path.isdir(f"{folder}/{_SHM}"):
        document["mounts"] = _with_shm(mounts, f"{folder}/{_SHM}")
    return json.dumps(document).encode()


def _with_shm(mounts: list[dict[str, Any]], shm: str) -> list[dict[str, Any]]:
    """In place of the private one of every default configuration, unless somebody wanted something else there."""
    bind = {**_bind(shm, _SHM_PLACE, "rw"), "options": ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"]}
    here = [mount for mount in mounts if os.path.normpath(mount["destination"]) == _SHM_PLACE]
    if not here:
        return [*mounts, bind]
    if len(here) == 1 and here[0].get("type") == "tmpfs":
        return [bind if mount is here[0] else mount for mount in mounts]
    return mounts


def _bind(source: str, destination: str, access: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", access],
    }


def _copied(path: str) -> bytes:
    """A node without such a file has pods with an empty one."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _make_directory(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)  # whatever the umask


def _write(path: str, data: bytes, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
