"""config.json documents for tests: what runc, containerd and Docker put into theirs by default."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from shimd.oci.spec import READONLY_PATHS, default_spec

DOCKER_PROFILE = "/usr/share/containers/seccomp.json"

# As containerd's oci package fills in (populateDefaultUnixSpec, defaultMounts, defaultUnixCaps).
CONTAINERD_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
CONTAINERD_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
CONTAINERD_MOUNTS = (
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/run", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
)


def runc_default(*args: str, rootfs: str = "rootfs", terminal: bool = False) -> dict[str, Any]:
    """``runc spec``'s document, without its terminal unless asked for."""
    document = default_spec()
    document["process"]["terminal"] = terminal
    document["process"]["args"] = list(args or ("/bin/true",))
    document["root"]["path"] = rootfs
    return document


def containerd_default(
    *args: str, rootfs: str = "rootfs", container_id: str = "test", namespace: str = "default"
) -> dict[str, Any]:
    """What containerd's client makes of an image with nothing configured."""
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": list(args or ("/bin/true",)),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {kind: list(CONTAINERD_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs},
        "mounts": [
            {"destination": destination, "type": fstype, "source": source, "options": options.split(",")}
            for destination, fstype, source, options in CONTAINERD_MOUNTS
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": f"/{namespace}/{container_id}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": list(CONTAINERD_MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }


def docker_default_seccomp(
    capabilities: Collection[str] = CONTAINERD_CAPABILITIES, *, machine: str = "", profile: str = DOCKER_PROFILE
) -> dict[str, Any]:
    """``linux.seccomp`` made of a profile in Docker's format, for a machine and a container's capabilities."""
    with open(profile, encoding="utf-8") as file:
        document = json.load(file)
    architecture, name = _ARCHITECTURES[machine or os.uname().machine]
    extra = [entry["subArchitectures"] for entry in document["archMap"] if entry["architecture"] == architecture]
    rules = [rule for rule in document["syscalls"] if _applies(rule, frozenset(capabilities), name)]
    seccomp = {
        "defaultAction": document["defaultAction"],
        "architectures": [architecture, *(extra[0] if extra else ())],
        "syscalls": [_rule(rule) for rule in rules],
    }
    if "defaultErrnoRet" in document:
        seccomp["defaultErrnoRet"] = document["defaultErrnoRet"]
    return seccomp


# uname's machine to libseccomp's name and the profile's
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
}


def _applies(rule: dict[str, Any], capabilities: frozenset[str], machine: str) -> bool:
    """``includes`` must all hold and ``excludes`` must none."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        machine in includes.get("arches", [machine])
        and capabilities.issuperset(includes.get("caps", ()))
        and _kernel() >= _version(includes.get("minKernel", "0"))
        and machine not in excludes.get("arches", ())
        and capabilities.isdisjoint(excludes.get("caps", ()))
        and not ("minKernel" in excludes and _kernel() >= _version(excludes["minKernel"]))
    )


def _kernel() -> tuple[int, ...]:
    return _version(os.uname().release.partition("-")[0])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    names = rule.get("names") or [rule["name"]]
    return {"names": names, **{key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key)}}


def every_field() -> dict[str, Any]:
    """A document with every field that shimd knows."""
    return {
        "ociVersion": "1.3.0",
        "process": _every_process_field(),
        "root": {"path": "/srv/rootfs", "readonly": True},
        "hostname": "host",
        "domainname": "domain",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {
                "destination": "/data",
                "type": "bind",
                "source": "/srv/data",
                "options": ["rbind", "ro"],
                "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            },
        ],
        "hooks": {
            kind: [{"path": "/bin/hook", "args": ["hook", kind], "env": ["A=b"], "timeout": 5}]
            for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
        },
        "annotations": {"org.example/key": "value"},
        "linux": _every_linux_field(),
    }


def _every_process_field() -> dict[str, Any]:
    return {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [5, 6]},
        "args": ["/bin/sh", "-c", "true"],
        "env": ["PATH=/bin", "EMPTY="],
        "cwd": "/home",
        "capabilities": {
            kind: ["CAP_CHOWN"] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 0}],
        "noNewPrivileges": True,
        "apparmorProfile": "profile",
        "oomScoreAdj": -100,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": 0,
            "priority": 0,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 1000000,
            "deadline": 2000000,
            "period": 3000000,
        },
        "selinuxLabel": "system_u:system_r:container_t:s0",
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0-3,7", "final": "0"},
    }


def _every_linux_field() -> dict[str, Any]:
    mapping = {"containerID": 0, "hostID": 100000, "size": 65536}
    return {
        "uidMappings": [mapping],
        "gidMappings": [mapping],
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel/domainname": "d"},
        "resources": _every_resource_field(),
        "cgroupsPath": "/a/b",
        "namespaces": [
            {"type": "pid", "path": "/proc/1/ns/pid"},
            *({"type": kind} for kind in ("network", "ipc", "uts", "mount", "user", "cgroup", "time")),
        ],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
        "netDevices": {"eth0": {"name": "eth1"}},
        "seccomp": _every_seccomp_field(),
        "rootfsPropagation": "rslave",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "system_u:object_r:container_file_t:s0",
        "intelRdt": {
            "closID": "class",
            "schemata": ["L3:0=f"],
            "l3CacheSchema": "L3:0=f",
            "memBwSchema": "MB:0=50",
            "enableMonitoring": True,
        },
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
        "personality": {"domain": "LINUX32", "flags": ["ANY"]},
        "timeOffsets": {"monotonic": {"secs": -1, "nanosecs": 999999999}, "boottime": {"secs": 2**40, "nanosecs": 0}},
    }


def _every_seccomp_field() -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/listener",
        "listenerMetadata": "metadata",
        "syscalls": [
            {
                "names": ["read", "write"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 2**64 - 1, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"}],
            }
        ],
    }


def _every_resource_field() -> dict[str, Any]:
    throttle = [{"major": 8, "minor": 0, "rate": 2**64 - 1}]
    return {
        "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
        "memory": {
            "limit": 9223372036854771712,
            "reservation": 1 << 20,
            "swap": -1,
            "kernel": -1,
            "kernelTCP": -1,
            "swappiness": 60,
            "disableOOMKiller": False,
            "useHierarchy": True,
            "checkBeforeUpdate": True,
        },
        "cpu": {
            "shares": 1024,
            "quota": -1,
            "burst": 1000,
            "period": 100000,
            "realtimeRuntime": 950000,
            "realtimePeriod": 1000000,
            "cpus": "0-1",
            "mems": "0",
            "idle": 1,
        },
        "pids": {"limit": 100},
        "blockIO": {
            "weight": 100,
            "leafWeight": 100,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 500, "leafWeight": 300}],
            "throttleReadBpsDevice": throttle,
            "throttleWriteBpsDevice": throttle,
            "throttleReadIOPSDevice": throttle,
            "throttleWriteIOPSDevice": throttle,
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 2**64 - 1}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
        "unified": {"memory.high": "1073741824"},
    }
