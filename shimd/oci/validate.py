"""What a document asks of the host: refused where the host does not have it, warned of where it has no effect.

``validate`` and its siblings for the documents of ``exec`` and ``update`` raise ``InvalidSpec`` with all problems, in
the order of the specification, and return the warnings. The rules that need no host are in ``shimd.oci.rules``.
"""

from __future__ import annotations

import os

from shimd.errors import InvalidSpec, Problem
from shimd.oci.fields import show
from shimd.oci.mappings import is_bind, is_id_mapped
from shimd.oci.model import IdMapping, Process, Resources, Spec
from shimd.oci.values import CAPABILITIES, huge_page_kib, sysctl_path
from shimd.typed import Any, Callable, Iterator, Protocol, Sequence

Problems = Iterator[Problem]
Rule = Callable[[Any, "Host"], Problems]


class Host(Protocol):
    """The part of ``shimd.host.facts.HostFacts`` that validation looks at."""

    @property
    def cgroup_mode(self) -> str: ...
    @property
    def apparmor(self) -> bool: ...
    @property
    def selinux(self) -> bool: ...
    @property
    def last_cap(self) -> int: ...
    @property
    def euid(self) -> int: ...
    @property
    def seccomp_actions(self) -> tuple[str, ...]: ...
    @property
    def seccomp_flags(self) -> tuple[str, ...]: ...
    @property
    def namespaces(self) -> tuple[str, ...]: ...


def validate(spec: Spec, host: Host) -> tuple[str, ...]:
    """Warnings for a config.json; raises ``InvalidSpec``."""
    parts = (("/process", spec.process), ("", spec), ("/linux/resources", spec.linux.resources))
    return _judge(parts, host, "config.json")


def validate_process(process: Process, host: Host) -> tuple[str, ...]:
    """Warnings for the process of an ``exec``; raises ``InvalidSpec``."""
    return _judge((("", process),), host, "process")


def validate_resources(resources: Resources, host: Host) -> tuple[str, ...]:
    """Warnings for the resources of an ``update``; raises ``InvalidSpec``."""
    return _judge((("", resources),), host, "resources")


def _judge(parts: Sequence[tuple[str, object]], host: Host, title: str) -> tuple[str, ...]:
    problems = [problem for at, record in parts for problem in _found(PROBLEMS, at, record, host)]
    if problems:
        raise InvalidSpec(problems, document=title)
    return tuple(str(warning) for at, record in parts for warning in _found(WARNINGS, at, record, host))


def _found(rules: dict[type, tuple[Rule, ...]], at: str, record: object, host: Host) -> Problems:
    for rule in rules[type(record)]:
        for found in rule(record, host):
            yield Problem(at + found.pointer, found.text)


# ---- process ---------------------------------------------------------------------------------------------------------


def security_labels(process: Process, host: Host) -> Problems:
    if process.apparmor_profile and not host.apparmor:
        yield Problem("/apparmorProfile", f"{show(process.apparmor_profile)}: AppArmor is not enabled on this host")
    if process.selinux_label and not host.selinux:
        yield Problem("/selinuxLabel", f"{show(process.selinux_label)}: SELinux is disabled or not supported")


def rootless_groups(process: Process, host: Host) -> Problems:
    if host.euid != 0 and process.user.additional_gids:
        yield Problem("/user/additionalGids", "cannot set any additional groups in a rootless container")


def unknown_capabilities(process: Process, host: Host) -> Problems:
    if process.capabilities is None:
        return
    known = frozenset(CAPABILITIES[: host.last_cap + 1])
    for kind, names in zip(process.capabilities._fields, process.capabilities, strict=True):
        for number, name in enumerate(names):
            if name not in known:
                yield Problem(f"/capabilities/{kind}/{number}", f"ignoring unknown capability {show(name)}")


# ---- the whole document ----------------------------------------------------------------------------------------------

KERNEL_NAMES = {"mount": "mnt", "network": "net"}


def kernel_namespaces(spec: Spec, host: Host) -> Problems:
    for number, namespace in enumerate(spec.linux.namespaces):
        if KERNEL_NAMES.get(namespace.type, namespace.type) not in host.namespaces:
            yield Problem(
                f"/linux/namespaces/{number}/type", f"{namespace.type} namespaces aren't enabled in the kernel"
            )


def mount_label(spec: Spec, host: Host) -> Problems:
    if spec.linux.mount_label and not host.selinux:
        yield Problem("/linux/mountLabel", f"{show(spec.linux.mount_label)}: SELinux is disabled or not supported")


def rootless_namespaces(spec: Spec, host: Host) -> Problems:
    if host.euid != 0 and spec.linux.namespace("user") is None:
        yield Problem("/linux/namespaces", "a rootless container needs a user namespace")


def rootless_mounts(spec: Spec, host: Host) -> Problems:
    """uid= and gid= of a mount must be ids of the container."""
    linux = spec.linux
    namespace = linux.namespace("user")
    if host.euid == 0 or namespace is None or namespace.path is not None:
        return
    for number, mount in enumerate(spec.mounts):
        for index, option in enumerate(mount.options):
            maps = {"uid": linux.uid_mappings, "gid": linux.gid_mappings}.get(option.partition("=")[0])
            wanted = option.partition("=")[2]
            if maps is not None and wanted.isdecimal() and not _maps(maps, int(wanted)):
                yield Problem(f"/mounts/{number}/options/{index}", f"{show(option)}: the id is not mapped")


def rootless_mapped_mounts(spec: Spec, host: Host) -> Problems:
    """mount_setattr(2) wants CAP_SYS_ADMIN over the file system itself."""
    if host.euid != 0:
        for number, mount in enumerate(spec.mounts):
            if is_id_mapped(mount):
                yield Problem(f"/mounts/{number}", "id-mapped mounts are not supported for rootless containers")


def _maps(maps: tuple[IdMapping, ...], wanted: int) -> bool:
    return any(mapping.container_id <= wanted < mapping.container_id + mapping.size for mapping in maps)


def network_sysctls(spec: Spec, host: Host) -> Problems:
    """A network namespace that is joined by path may be the runtime's own."""
    namespace = spec.linux.namespace("network")
    if namespace is None or namespace.path is None:
        return
    keys = [key for key in spec.linux.sysctl if sysctl_path(key).startswith("net/")]
    if keys and _is_own_network(namespace.path):
        for key in keys:
            escaped = key.replace("~", "~0").replace("/", "~1")
            yield Problem(f"/linux/sysctl/{escaped}", "not allowed in the host's network namespace")


def network_devices(spec: Spec, host: Host) -> Problems:
    namespace = spec.linux.namespace("network")
    if not spec.linux.net_devices or namespace is None:
        return
    if host.euid != 0:
        yield Problem("/linux/netDevices", "network devices are not supported for rootless containers")
    elif namespace.path is not None and _is_own_network(namespace.path):
        yield Problem("/linux/netDevices", "not allowed in the host's network namespace")


def _is_own_network(path: str) -> bool:
    try:
        return os.path.samestat(os.stat("/proc/self/ns/net"), os.stat(path))
    except OSError:
        return False  # joining it will fail and say why


SECCOMP_KERNEL_NAMES = {"kill": "kill_thread", "notify": "user_notif"}


def seccomp(spec: Spec, host: Host) -> Problems:
    wanted = spec.linux.seccomp
    if wanted is None:
        return
    actions = [("defaultAction", wanted.default_action)]
    actions += [(f"syscalls/{number}/action", rule.action) for number, rule in enumerate(wanted.syscalls)]
    for field, action in actions:
        name = action.removeprefix("SCMP_ACT_").lower()
        if SECCOMP_KERNEL_NAMES.get(name, name) not in host.seccomp_actions:
            yield Problem(f"/linux/seccomp/{field}", f"{action} is not supported by this kernel")
    for number, flag in enumerate(wanted.flags or ()):
        if flag not in host.seccomp_flags:
            yield Problem(f"/linux/seccomp/flags/{number}", f"{flag} is not supported by this kernel")


def version(spec: Spec, host: Host) -> Problems:
    if spec.oci_version is None or not spec.oci_version.startswith("1."):
        yield Problem("/ociVersion", f"{show(spec.oci_version)} is not a 1.x version of the runtime specification")


def relative_destinations(spec: Spec, host: Host) -> Problems:
    for number, mount in enumerate(spec.mounts):
        if not mount.destination.startswith("/"):
            yield Problem(
                f"/mounts/{number}/destination",
                f"relative destination path {show(mount.destination)} is deprecated, using it as relative to /",
            )


def ignored_mount_types(spec: Spec, host: Host) -> Problems:
    for number, mount in enumerate(spec.mounts):
        if is_bind(mount) and mount.type not in (None, "bind", "none"):
            yield Problem(f"/mounts/{number}/type", f"{show(mount.type)} is ignored on a bind mount")


def redundant_mappings(spec: Spec, host: Host) -> Problems:
    namespace = spec.linux.namespace("user")
    if namespace is not None and namespace.path is not None and (spec.linux.uid_mappings or spec.linux.gid_mappings):
        yield Problem("/linux/uidMappings", f"the mappings of the joined namespace {namespace.path} are used instead")


def personality_flags(spec: Spec, host: Host) -> Problems:
    if spec.linux.personality is not None and spec.linux.personality.flags:
        yield Problem("/linux/personality/flags", "ignored: none are defined")


# ---- resources -------------------------------------------------------------------------------------------------------


def huge_pages(resources: Resources, host: Host) -> Problems:
    for number, limit in enumerate(resources.hugepage_limits):
        kib = huge_page_kib(limit.page_size)
        if kib is None or not os.path.isdir(f"/sys/kernel/mm/hugepages/hugepages-{kib}kB"):
            yield Problem(
                f"/hugepageLimits/{number}/pageSize", f"{show(limit.page_size)} is not a huge page size of this host"
            )


def cgroup_version(resources: Resources, host: Host) -> Problems:
    if host.cgroup_mode != "v2":
        if resources.unified:
            yield Problem("/unified", "invalid configuration: needs cgroup v2")
        return
    for field, value in (
        ("realtimeRuntime", resources.cpu.realtime_runtime),
        ("realtimePeriod", resources.cpu.realtime_period),
    ):
        if value:
            yield Problem(f"/cpu/{field}", f"{value}: realtime limits are not available on cgroup v2")


def without_effect(resources: Resources, host: Host) -> Problems:
    memory = resources.memory
    for field, value in (("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)):
        if value is not None:
            yield Problem(f"/memory/{field}", "kernel memory settings are ignored")
    if host.cgroup_mode != "v2":
        return
    for field, given in (
        ("memory/swappiness", memory.swappiness is not None),
        ("memory/disableOOMKiller", memory.disable_oom_killer),
        ("blockIO/leafWeight", resources.block_io.leaf_weight),
        ("network", resources.network.class_id or resources.network.priorities),
    ):
        if given:
            yield Problem(f"/{field}", "has no effect on cgroup v2")


def device_access(resources: Resources, host: Host) -> Problems:
    for number, rule in enumerate(resources.devices):
        if unknown := set(rule.access or "") - set("rwm"):
            yield Problem(f"/devices/{number}/access", f"{show(''.join(sorted(unknown)))} is ignored")


def weights_of_idle_groups(resources: Resources, host: Host) -> Problems:
    """The kernel gives those a fixed one."""
    if resources.cpu.idle == 1 and resources.cpu.shares:
        yield Problem("/cpu/shares", "unable to apply both shares and idle: ignored")
    if resources.unified.get("cpu.idle", "").strip() == "1" and "cpu.weight" in resources.unified:
        yield Problem("/unified/cpu.weight", "unable to apply both cpu.weight and cpu.idle: ignored")


PROBLEMS: dict[type, tuple[Rule, ...]] = {
    Process: (rootless_groups, security_labels),
    Spec: (
        rootless_mounts,
        rootless_mapped_mounts,
        network_sysctls,
        network_devices,
        rootless_namespaces,
        kernel_namespaces,
        seccomp,
        mount_label,
    ),
    Resources: (huge_pages, cgroup_version),
}

WARNINGS: dict[type, tuple[Rule, ...]] = {
    Process: (unknown_capabilities,),
    Spec: (version, ignored_mount_types, relative_destinations, redundant_mappings, personality_flags),
    Resources: (device_access, weights_of_idle_groups, without_effect),
}
