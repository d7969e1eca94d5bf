"""What config.json may hold, as tables: every object of the specification that shimd honours, field by field.

The order of a table is that of its record in ``shimd.oci.model`` and of the specification. ``docs/config.md`` is held
against these tables by a test. Fields that are not here are ignored, as the specification demands.
"""

from __future__ import annotations

from shimd.oci import model, values
from shimd.oci.fields import (
    INT64,
    UINT16,
    UINT32,
    UINT64,
    Document,
    ListOf,
    MapOf,
    ObjectOf,
    Refused,
    Scalar,
    Strings,
    a_string,
    absolute_path,
    boolean,
    choice,
    converted,
    integer,
    matching,
    or_none,
    show,
    string,
)
from shimd.typed import Any

identifier = integer(0, 2**32 - 2)  # 2^32-1 is "no change" to setresuid and chown
uint32 = integer(*UINT32)
uint64 = integer(*UINT64)
int64 = integer(*INT64)
text = or_none(string)
texts = Strings()
name = matching(string, bool, "a name")
limit = integer(-1, INT64[1])
major = integer(0, 2**12 - 1)  # the kernel's dev_t; larger numbers would be truncated silently
minor = integer(0, 2**20 - 1)


def _cpu_list(value: object) -> str:
    try:
        values.cpu_list(a_string(value))
    except ValueError as error:
        raise Refused(f"{show(value)} is not a CPU list: {error}") from None
    return str(value)


def _node_list(value: object) -> str:
    try:
        nodes = values.cpu_list(a_string(value))
    except ValueError as error:
        raise Refused(f"invalid memory policy nodes {show(value)}: {error}") from None
    if nodes[-1] > values.MAX_NODE:
        raise Refused(f"invalid memory policy nodes {show(value)}: {nodes[-1]} is above {values.MAX_NODE}")
    return str(value)


def _matches(pattern: str, value: str) -> bool:
    """Few documents have what needs an expression, and ``re`` takes long to load."""
    import re

    return re.fullmatch(pattern, value, re.ASCII) is not None


def _is_cpuset(value: str) -> bool:
    return _matches(_CPUSET, value)


def _is_page_size(value: str) -> bool:
    return _matches(r"[1-9][0-9]*[KMG]B", value)


# The kernel's list format (Documentation/admin-guide/kernel-parameters.rst), as cpuset takes it.
_CPUSET = r"[ \n]*(|\d+(-\d+(:\d+/\d+)?)?)([ \n]*,[ \n]*(|\d+(-\d+(:\d+/\d+)?)?))*[ \n]*"

cpu_list = or_none(Scalar(_cpu_list, ""))
cpuset = or_none(matching(string, _is_cpuset, "a list like 0-3,7"))
access = matching(string, lambda value: not set(value).isdisjoint("rwm"), "made of the letters r, w and m")
variable = matching(string, lambda value: value.find("=") > 0, "of the form NAME=value")
one_word = matching(string, lambda value: len(value.split()) == 1 and "/" not in value, "a name")
page_size = matching(string, _is_page_size, "a size like 2MB")

ID_MAPPINGS = ListOf(
    ObjectOf(
        model.IdMapping,
        {"containerID": identifier, "hostID": identifier, "size": integer(1, UINT32[1])},
        required=("containerID", "hostID", "size"),
    )
)

MOUNT = ObjectOf(
    model.Mount,
    {
        "destination": matching(string, bool, "a path"),
        "type": text,
        "source": text,
        "options": texts,
        "uidMappings": ID_MAPPINGS,
        "gidMappings": ID_MAPPINGS,
    },
    required=("destination",),
)

HOOK = ObjectOf(
    model.Hook,
    {"path": absolute_path, "args": texts, "env": ListOf(variable), "timeout": integer(1, INT64[1] // 10**9)},
    required=("path",),
)

HOOKS = ObjectOf(model.Hooks, {kind: ListOf(HOOK) for kind in values.HOOKS})

# ---- process ---------------------------------------------------------------------------------------------------------

USER = ObjectOf(
    model.User, {"uid": identifier, "gid": identifier, "umask": uint32, "additionalGids": ListOf(identifier)}
)

CONSOLE_SIZE = ObjectOf(
    model.ConsoleSize,
    {"height": integer(*UINT16), "width": integer(*UINT16)},  # struct winsize
    required=("height", "width"),
)

# Names that no kernel knows are for validation to warn of.
CAPABILITIES = ObjectOf(
    model.Capabilities, dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), texts)
)

RLIMIT = ObjectOf(
    model.Rlimit,
    {"type": choice("resource limit", values.RLIMITS), "hard": uint64, "soft": uint64},
    required=("type", "hard", "soft"),
)

SCHEDULER = ObjectOf(
    model.Scheduler,
    {
        "policy": choice("scheduling policy", values.SCHEDULER_POLICIES),
        "nice": integer(-20, 19),
        "priority": integer(0, 99),
        "flags": ListOf(choice("scheduling flag", values.SCHEDULER_FLAGS)),
        "runtime": uint64,
        "deadline": uint64,
        "period": uint64,
    },
    required=("policy",),
)

IO_PRIORITY = ObjectOf(
    model.IoPriority,
    {"class": choice("I/O priority class", values.IO_PRIORITY_CLASSES), "priority": integer(0, 7)},
    required=("class",),
)

PROCESS = ObjectOf(
    model.Process,
    {
        "terminal": boolean,
        "consoleSize": CONSOLE_SIZE,
        "user": USER,
        "args": texts,
        "env": ListOf(variable),
        "cwd": absolute_path,
        "capabilities": CAPABILITIES,
        "rlimits": ListOf(RLIMIT),
        "noNewPrivileges": boolean,
        "apparmorProfile": text,
        "oomScoreAdj": integer(-1000, 1000),
        "scheduler": SCHEDULER,
        "selinuxLabel": text,
        "ioPriority": IO_PRIORITY,
        "execCPUAffinity": ObjectOf(model.CpuAffinity, {"initial": cpu_list, "final": cpu_list}),
    },
    required=("args", "cwd"),
)

# ---- linux.resources -------------------------------------------------------------------------------------------------

# -1 is how some engines spell "any".
_wildcard = converted(integer(-1, UINT32[1]), lambda value: None if value == -1 else value)

DEVICE_RULE = ObjectOf(
    model.DeviceRule,
    {
        "allow": boolean,
        "type": or_none(choice("device type", ("a", "b", "c"))),
        "major": _wildcard,
        "minor": _wildcard,
        "access": access,
    },
    required=("access",),
)

# Engines write "unset" as an unsigned -1.
_swappiness = Scalar(
    lambda value: None if value == UINT64[1] and type(value) is int else integer(0, 100).check(value), None
)

MEMORY = ObjectOf(
    model.Memory,
    {
        "limit": limit,
        "reservation": limit,
        "swap": limit,
        "kernel": int64,
        "kernelTCP": int64,
        "swappiness": _swappiness,
        "disableOOMKiller": boolean,
        "useHierarchy": boolean,
        "checkBeforeUpdate": boolean,
    },
)

CPU = ObjectOf(
    model.Cpu,
    {
        "shares": uint64,
        "quota": int64,
        "burst": uint64,
        "period": uint64,
        "realtimeRuntime": int64,
        "realtimePeriod": uint64,
        "cpus": cpuset,
        "mems": cpuset,
        "idle": integer(0, 1),
    },
)

_weight = integer(0, 1000)  # 0 is unset

WEIGHT_DEVICE = ObjectOf(
    model.WeightDevice,
    {"major": major, "minor": minor, "weight": _weight, "leafWeight": _weight},
    required=("major", "minor"),
)

THROTTLE_DEVICES = ListOf(
    ObjectOf(model.ThrottleDevice, {"major": major, "minor": minor, "rate": uint64}, required=("major", "minor"))
)

BLOCK_IO = ObjectOf(
    model.BlockIo,
    {
        "weight": _weight,
        "leafWeight": _weight,
        "weightDevice": ListOf(WEIGHT_DEVICE),
        "throttleReadBpsDevice": THROTTLE_DEVICES,
        "throttleWriteBpsDevice": THROTTLE_DEVICES,
        "throttleReadIOPSDevice": THROTTLE_DEVICES,
        "throttleWriteIOPSDevice": THROTTLE_DEVICES,
    },
)

NETWORK = ObjectOf(
    model.Network,
    {
        "classID": uint32,
        "priorities": ListOf(
            ObjectOf(model.InterfacePriority, {"name": one_word, "priority": uint32}, required=("name", "priority"))
        ),
    },
)


def _is_control_file(key: str) -> bool:
    """cgroup.procs and its like would move or kill processes instead of limiting them."""
    core = key.startswith("cgroup.") and not key.startswith("cgroup.max.")
    return _matches(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)+", key) and not core


RESOURCES = ObjectOf(
    model.Resources,
    {
        "devices": ListOf(DEVICE_RULE),
        "memory": MEMORY,
        "cpu": CPU,
        "pids": ObjectOf(model.Pids, {"limit": int64}),
        "blockIO": BLOCK_IO,
        "hugepageLimits": ListOf(
            ObjectOf(model.HugepageLimit, {"pageSize": page_size, "limit": uint64}, required=("pageSize", "limit"))
        ),
        "network": NETWORK,
        "rdma": MapOf(ObjectOf(model.Rdma, {"hcaHandles": uint32, "hcaObjects": uint32}), one_word),
        "unified": MapOf(string, matching(string, _is_control_file, "a control file that limits resources")),
    },
)

# ---- linux -----------------------------------------------------------------------------------------------------------

NAMESPACE = ObjectOf(
    model.Namespace,
    {"type": choice("namespace type", values.NAMESPACES), "path": or_none(absolute_path)},
    required=("type",),
)

DEVICE = ObjectOf(
    model.Device,
    {
        "path": matching(string, bool, "a path"),
        "type": choice("device type", ("b", "c", "p", "u")),
        "major": int64,
        "minor": int64,
        # Engines leave the file type in it, the kernel's or Go's own bits.
        "fileMode": converted(uint32, lambda value: value & 0o7777),
        "uid": identifier,
        "gid": identifier,
    },
    required=("path", "type"),
)

SECCOMP_ARG = ObjectOf(
    model.SeccompArg,
    {
        "index": integer(0, 5),
        "value": uint64,
        "valueTwo": uint64,
        "op": choice("seccomp operator", values.SECCOMP_OPERATORS),
    },
    required=("index", "value", "op"),
)

_action = choice("seccomp action", values.SECCOMP_ACTIONS)

SYSCALL_RULE = ObjectOf(
    model.SyscallRule,
    {"names": texts, "action": _action, "errnoRet": integer(*UINT16), "args": ListOf(SECCOMP_ARG)},
    required=("names", "action"),
)


class _Seccomp(ObjectOf):
    """An object without action and rules means no filter, as in runc."""

    def __call__(self, value: Any, document: Document) -> Any:
        if type(value) is dict and not value.get("defaultAction") and not value.get("syscalls"):
            return None
        return super().__call__(value, document)


SECCOMP = _Seccomp(
    model.Seccomp,
    {
        "defaultAction": _action,
        "defaultErrnoRet": integer(*UINT16),
        "architectures": ListOf(choice("seccomp architecture", values.SECCOMP_ARCHITECTURES)),
        "flags": ListOf(choice("seccomp flag", values.SECCOMP_FLAGS)),
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": ListOf(SYSCALL_RULE),
    },
    required=("defaultAction",),
)

INTEL_RDT = ObjectOf(
    model.IntelRdt,
    {
        "closID": text,
        "schemata": texts,
        "l3CacheSchema": text,
        "memBwSchema": text,
        "enableMonitoring": boolean,
    },
)

MEMORY_POLICY = ObjectOf(
    model.MemoryPolicy,
    {
        "mode": choice("memory policy mode", values.MEMORY_POLICY_MODES, "invalid"),
        "nodes": or_none(Scalar(_node_list, "")),
        "flags": ListOf(choice("memory policy flag", values.MEMORY_POLICY_FLAGS, "invalid")),
    },
)

PERSONALITY = ObjectOf(
    model.Personality,
    {"domain": choice("personality", values.PERSONALITIES), "flags": texts},
    required=("domain",),
)

LINUX = ObjectOf(
    model.Linux,
    {
        "uidMappings": ID_MAPPINGS,
        "gidMappings": ID_MAPPINGS,
        "sysctl": MapOf(string),
        "resources": RESOURCES,
        "cgroupsPath": text,
        "namespaces": ListOf(NAMESPACE),
        "devices": ListOf(DEVICE),
        "netDevices": MapOf(ObjectOf(model.NetDevice, {"name": text})),
        "seccomp": SECCOMP,
        "rootfsPropagation": or_none(choice("propagation", values.PROPAGATIONS)),
        "maskedPaths": ListOf(absolute_path),
        "readonlyPaths": ListOf(absolute_path),
        "mountLabel": text,
        "intelRdt": INTEL_RDT,
        "memoryPolicy": MEMORY_POLICY,
        "personality": PERSONALITY,
        "timeOffsets": MapOf(
            ObjectOf(model.TimeOffset, {"secs": int64, "nanosecs": integer(0, 10**9 - 1)}),
            choice("clock", ("monotonic", "boottime")),
        ),
    },
)

SPEC = ObjectOf(
    model.Spec,
    {
        "ociVersion": text,
        "process": PROCESS,
        "root": ObjectOf(
            model.Root, {"path": matching(string, bool, "a path"), "readonly": boolean}, required=("path",)
        ),
        "hostname": text,
        "domainname": text,
        "mounts": ListOf(MOUNT),
        "hooks": HOOKS,
        "annotations": MapOf(string),
        "linux": LINUX,
    },
    required=("process", "root"),
)
