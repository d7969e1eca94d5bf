"""The features document of the specification (features.md): what shimd can do, whether or not this host can."""

from __future__ import annotations

from shimd.oci import values
from shimd.oci.spec import OCI_VERSION, OCI_VERSION_MIN
from shimd.typed import Any, Iterable, Protocol


class Host(Protocol):
    @property
    def seccomp_flags(self) -> tuple[str, ...]: ...


def features(host: Host, *, version: str, libseccomp: str = "", mount_options: Iterable[str] = ()) -> dict[str, Any]:
    """``libseccomp`` is its version, "" where it is missing; ``mount_options`` are the names that bind mounts take."""
    annotations = {"shimd.version": version, "org.opencontainers.runc.checkpoint.enabled": "false"}
    if libseccomp:
        annotations["io.github.seccomp.libseccomp.version"] = libseccomp
    return {
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION,
        "hooks": list(values.HOOKS),
        "mountOptions": sorted(mount_options),
        "linux": {
            "namespaces": list(values.NAMESPACES),
            "capabilities": list(values.CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": _seccomp(host) if libseccomp else {"enabled": False},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
            "memoryPolicy": {
                "modes": list(values.MEMORY_POLICY_MODES),
                "flags": list(values.MEMORY_POLICY_FLAGS),
            },
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": ["bundle", "org.systemd.property.", "org.criu.config"],
    }


def _seccomp(host: Host) -> dict[str, Any]:
    return {
        "enabled": True,
        "actions": list(values.SECCOMP_ACTIONS),
        "operators": list(values.SECCOMP_OPERATORS),
        "archs": list(values.SECCOMP_ARCHITECTURES),
        "knownFlags": list(values.SECCOMP_FLAGS),
        "supportedFlags": [flag for flag in values.SECCOMP_FLAGS if flag in host.seccomp_flags],
    }
