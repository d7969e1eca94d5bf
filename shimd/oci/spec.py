"""The document that ``spec`` writes: a sensible container to start from, the same as runc's."""

from __future__ import annotations

import posixpath

from shimd.typed import Any

OCI_VERSION = "1.3.0"  # of the specification that shimd implements
OCI_VERSION_MIN = "1.0.0"

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")

# destination, type, source, options
MOUNTS = (
    ("/proc", "proc", "proc", ""),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
)


def default_spec(*, rootless: bool = False, cgroup2: bool = False, uid: int = 0, gid: int = 0) -> dict[str, Any]:
    """``cgroup2``: the host is pure cgroup v2; ``uid`` and ``gid`` become root of a ``rootless`` container."""
    document = {
        "ociVersion": OCI_VERSION,
        "process": _process(),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runc",
        "mounts": [_mount(*mount) for mount in MOUNTS],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in (*NAMESPACES, *(("cgroup",) if cgroup2 else ()))],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    return _rootless(document, uid, gid) if rootless else document


def _process() -> dict[str, Any]:
    return {
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _mount(destination: str, fstype: str, source: str, options: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": fstype, "source": source}
    return mount | {"options": options.split(",")} if options else mount


def _rootless(document: dict[str, Any], uid: int, gid: int) -> dict[str, Any]:
    """Without network, and without what only root of the host may do."""
    linux = document["linux"]
    kept = [namespace for namespace in linux["namespaces"] if namespace["type"] != "network"]
    del linux["resources"]
    document["mounts"] = [_rootless_mount(mount) for mount in document["mounts"]]
    document["linux"] = {
        "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
        **linux,
        "namespaces": [*kept, {"type": "user"}],
    }
    return document


def _rootless_mount(mount: dict[str, Any]) -> dict[str, Any]:
    if posixpath.normpath(mount["destination"]) == "/sys":
        return _mount("/sys", "none", "/sys", "rbind,nosuid,noexec,nodev,ro")
    options = [option for option in mount.get("options", ()) if not option.startswith(("uid=", "gid="))]
    return mount | {"options": options} if options else mount
