"""What this host offers to containers and what it lacks, with the reason and the remedy of each lack.

Every check is a function of the facts; those that the facts cannot answer try the thing itself. Nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import sys

from shimd.host.facts import HostFacts
from shimd.linux import bpf, caps, selfexe
from shimd.linux.mount import fsopen
from shimd.linux.process import get_rlimit
from shimd.records import Record

OLDEST_KERNEL = (5, 14)
PIDFD_EXIT_KERNEL = (6, 15)
MACHINES = ("x86_64", "aarch64")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

_RLIMIT_NOFILE = 7
_ENOUGH_FILES = 65536
_RETURN_ALLOW = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit

# What a missing controller costs, by its v2 name; the v1 name where it differs.
_CONTROLLERS = {
    "cpu": "CPU shares and quotas",
    "cpuset": "pinning to CPUs and memory nodes",
    "memory": "memory limits and OOM events",
    "pids": "limits of the number of processes",
    "io": "block I/O weights and limits",
    "hugetlb": "limits of huge pages",
    "rdma": "limits of RDMA resources",
}
_V1_NAMES = {"io": "blkio"}
_OPTIONAL_CONTROLLERS = ("hugetlb", "rdma")


class Finding(Record):
    """``reason`` tells what was found; ``remedy`` is empty when all is well."""

    name: str
    ok: bool
    reason: str
    remedy: str


def doctor(facts: HostFacts) -> list[Finding]:
    """In the order of importance."""
    return [check(facts) for check in _CHECKS]


def _good(name: str, reason: str) -> Finding:
    return Finding(name, ok=True, reason=reason, remedy="")


def _lack(name: str, reason: str, remedy: str) -> Finding:
    return Finding(name, ok=False, reason=reason, remedy=remedy)


def _kernel(facts: HostFacts) -> Finding:
    if facts.kernel < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        return _lack("kernel", f"Linux {facts.release} lacks calls that shimd needs", f"use Linux {oldest} or newer")
    return _good("kernel", f"Linux {facts.release}")


def _machine(facts: HostFacts) -> Finding:
    if facts.machine not in MACHINES:
        return _lack("machine", f"{facts.machine} is not supported", f"use {' or '.join(MACHINES)}")
    return _good("machine", facts.machine)


def _privileges(facts: HostFacts) -> Finding:
    missing = [
        name
        for name in ("CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_CHOWN", "CAP_KILL")
        if not facts.has_cap(caps.NUMBERS[name])
    ]
    if facts.euid != 0 or missing:
        lacking = f" without {', '.join(missing)}" if missing else ""
        return _lack("privileges", f"runs as uid {facts.euid}{lacking}", "start shimd as root with all capabilities")
    if facts.in_userns:
        return _lack(
            "privileges",
            "runs in a user namespace: devices cannot be made, some mounts are refused",
            "start shimd in the initial user namespace",
        )
    return _good("privileges", "root in the initial user namespace")


def _sys_resource(facts: HostFacts) -> Finding:
    name = "CAP_SYS_RESOURCE"
    if facts.has_cap(caps.CAP_SYS_RESOURCE):
        return _good(name, "limits can be raised and oom_score_adj lowered")
    return _lack(
        name,
        "missing: a config that raises a hard rlimit or lowers oom_score_adj fails with EPERM",
        "give shimd CAP_SYS_RESOURCE, or ask for no more than its own limits",
    )


def _cgroups(facts: HostFacts) -> Finding:
    if facts.cgroup_mode == "none":
        return _lack("cgroups", "no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    where = facts.unified_mount if facts.cgroup_mode == "v2" else os.path.dirname(facts.hierarchies[0].mount_point)
    return _good("cgroups", f"{facts.cgroup_mode}, mounted at {where}")


def _controllers(facts: HostFacts) -> Finding:
    name = "cgroup controllers"
    present = {controller for hierarchy in facts.hierarchies for controller in hierarchy.controllers}
    present.update(facts.unified_controllers)
    missing = [key for key in _CONTROLLERS if key not in present and _V1_NAMES.get(key, key) not in present]
    found = " ".join(sorted(controller for controller in present if not controller.startswith("name="))) or "none"
    if not [key for key in missing if key not in _OPTIONAL_CONTROLLERS]:
        return _good(name, found)
    lost = ", ".join(f"{key} ({_CONTROLLERS[key]})" for key in missing)
    return _lack(
        name,
        f"{found}; missing: {lost}",
        "enable them: cgroup.subtree_control of the parent cgroup, or the kernel's command line and configuration",
    )


def _devices(facts: HostFacts) -> Finding:
    name = "device rules"
    if any("devices" in hierarchy.controllers for hierarchy in facts.hierarchies):
        return _good(name, "by the devices controller of cgroup v1")
    try:
        os.close(bpf.prog_load(_RETURN_ALLOW))
    except OSError as error:
        return _lack(
            name,
            f"the kernel refuses device programs: {error.strerror}",
            "give shimd CAP_BPF or CAP_SYS_ADMIN; the kernel needs CONFIG_CGROUP_BPF",
        )
    return _good(name, "by eBPF programs of cgroup v2")


def _swap(facts: HostFacts) -> Finding:
    name = "swap accounting"
    for hierarchy in facts.hierarchies:
        if "memory" in hierarchy.controllers:
            if os.path.exists(f"{hierarchy.mount_point}/memory.memsw.limit_in_bytes"):
                return _good(name, "memory.memsw of cgroup v1")
            return _lack(name, "memory.swap limits are not enforced", "boot with swapaccount=1")
    if "memory" in facts.unified_controllers:
        return _good(name, "memory.swap of cgroup v2")
    return _lack(name, "there is no memory controller", "enable the memory controller")


def _namespaces(facts: HostFacts) -> Finding:
    missing = [name for name in NAMESPACES if name not in facts.namespaces]
    if missing:
        return _lack("namespaces", f"missing: {', '.join(missing)}", "use a kernel configured with all namespaces")
    return _good("namespaces", "all eight kinds")


def _user_namespaces(_: HostFacts) -> Finding:
    name = "user namespaces"
    if _sysctl("user/max_user_namespaces") == "0":
        return _lack(name, "forbidden by sysctl", "sysctl -w user.max_user_namespaces=10000")
    for key, forbidding in (("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")):
        if _sysctl(f"kernel/{key}") == forbidding:
            return _lack(
                name,
                f"only root may make them (kernel.{key} = {forbidding}): no rootless containers",
                f"sysctl -w kernel.{key}={1 - int(forbidding)}, if rootless containers are wanted",
            )
    return _good(name, "allowed")


def _seccomp(facts: HostFacts) -> Finding:
    if "errno" not in facts.seccomp_actions:
        return _lack("seccomp", "the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER")
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return _lack("seccomp", "libseccomp, which compiles profiles, is missing", "apt install libseccomp2")
    return _good("seccomp", f"actions {' '.join(facts.seccomp_actions)}")


def _mandatory_access(facts: HostFacts) -> Finding:
    name = "AppArmor or SELinux"
    enabled = [label for label, on in (("AppArmor", facts.apparmor), ("SELinux", facts.selinux)) if on]
    if enabled:
        return _good(name, " and ".join(enabled))
    return _lack(
        name,
        "neither is enabled: a config with an AppArmor profile or an SELinux label is refused",
        "boot with security=apparmor or security=selinux, or run containers without such labels",
    )


def _overlayfs(_: HostFacts) -> Finding:
    try:
        os.close(fsopen("overlay"))
    except OSError as error:
        return _lack("overlayfs", f"not available: {error.strerror}", "modprobe overlay")
    return _good("overlayfs", "available")


def _own_binary(_: HostFacts) -> Finding:
    """CVE-2019-5736, see shimd.linux.selfexe."""
    name = "protection of the own binary"
    try:
        os.close(selfexe.read_only_clone(sys.executable))
    except OSError as error:
        reason = error.strerror
    else:
        return _good(name, "read-only clone")
    try:
        os.close(selfexe.sealed_copy(sys.executable))
    except OSError as error:
        return _lack(name, f"neither overlayfs ({reason}) nor memfd ({error.strerror})", "sysctl -w vm.memfd_noexec=1")
    return _good(name, f"sealed copy in memory (no overlay: {reason})")


def _pidfd_exit(facts: HostFacts) -> Finding:
    name = "exit status by pidfd"
    if facts.kernel >= PIDFD_EXIT_KERNEL:
        return _good(name, "exit codes survive the loss of the keeper")
    needed = ".".join(map(str, PIDFD_EXIT_KERNEL))
    return _lack(name, "exit codes are lost if the keeper is killed", f"use Linux {needed} or newer, if that matters")


def _open_files(_: HostFacts) -> Finding:
    name = "open files"
    hard = get_rlimit(0, _RLIMIT_NOFILE)[1]
    if hard < _ENOUGH_FILES:
        return _lack(
            name,
            f"at most {hard}, and every container takes about ten of the daemon's",
            "LimitNOFILE=infinity in the unit of shimd",
        )
    return _good(name, f"up to {hard}")


def _loop_devices(_: HostFacts) -> Finding:
    if not os.path.exists("/dev/loop-control"):
        return _lack("loop devices", "no /dev/loop-control: images cannot be mounted as rootfs", "modprobe loop")
    return _good("loop devices", "available")


def _fuse(_: HostFacts) -> Finding:
    if not os.path.exists("/dev/fuse"):
        return _lack("FUSE", "no /dev/fuse: fuse-overlayfs and the like do not work in containers", "modprobe fuse")
    return _good("FUSE", "available")


def _systemd(facts: HostFacts) -> Finding:
    if not facts.systemd:
        return _lack(
            "systemd",
            "not running: no cgroups through systemd, no socket activation",
            "use the cgroupfs driver (SystemdCgroup = false)",
        )
    return _good("systemd", "running")


def _id_maps(_: HostFacts) -> Finding:
    missing = [program for program in ("newuidmap", "newgidmap") if not _find_program(program)]
    if missing:
        lost = "rootless containers get one id only"
        return _lack("rootless id maps", f"{' and '.join(missing)} missing: {lost}", "apt install uidmap")
    return _good("rootless id maps", "newuidmap and newgidmap found")


def _criu(_: HostFacts) -> Finding:
    found = _find_program("criu")
    if not found:
        return _lack("CRIU", "not installed: no checkpoint and restore", "apt install criu")
    return _good("CRIU", found)


_CHECKS = (
    _kernel,
    _machine,
    _privileges,
    _cgroups,
    _controllers,
    _devices,
    _swap,
    _namespaces,
    _user_namespaces,
    _seccomp,
    _mandatory_access,
    _own_binary,
    _overlayfs,
    _sys_resource,
    _open_files,
    _pidfd_exit,
    _loop_devices,
    _fuse,
    _systemd,
    _id_maps,
    _criu,
)


def _sysctl(key: str) -> str:
    """ "" when the kernel does not have it."""
    try:
        with open(f"/proc/sys/{key}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _find_program(name: str) -> str:
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""
