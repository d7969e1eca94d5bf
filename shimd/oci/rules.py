"""The rules that a document can break by itself: what fits together and what not, whatever the host.

A rule is a generator of problems over a record. Each ``of_…`` function runs the rules of one kind of document;
``known`` are the problems that reading has already found. A rule stays silent about what those have blanked, and a rule
that compares with other parts of the document (``needs``) is left out when one of those is in doubt, so that one
mistake is reported once.
"""

from __future__ import annotations

from shimd.errors import Problem
from shimd.oci import hardware, mappings
from shimd.oci.fields import pointer, show
from shimd.oci.mappings import is_bind
from shimd.oci.model import Device, Mount, Process, Resources, Scheduler, Seccomp, Spec
from shimd.oci.values import rooted, sysctl_path
from shimd.records import Record
from shimd.typed import Any, Callable, Iterator, Sequence

Check = Callable[[Any, list[Problem]], list[Problem]]
Problems = Iterator[Problem]

NOTIFY = "SCMP_ACT_NOTIFY"


class Rule(Record):
    check: Callable[[Any], Problems]
    needs: tuple[str, ...] = ()


def of_spec(spec: Spec, known: list[Problem]) -> list[Problem]:
    return (
        _run(PROCESS_RULES, spec.process, "/process", known)
        + _run(SPEC_RULES, spec, "", known)
        + _run(RESOURCES_RULES, spec.linux.resources, "/linux/resources", known)
    )


def of_process(process: Process, known: list[Problem]) -> list[Problem]:
    return _run(PROCESS_RULES, process, "", known)


def of_resources(resources: Resources, known: list[Problem]) -> list[Problem]:
    return _run(RESOURCES_RULES, resources, "", known)


def _run(rules: Sequence[Rule], record: object, at: str, known: list[Problem]) -> list[Problem]:
    found = []
    for rule in rules:
        if not any(_related(at + need, problem.pointer) for need in rule.needs for problem in known):
            found += [Problem(at + problem.pointer, problem.text) for problem in rule.check(record)]
    return [new for new in found if not any(_related(new.pointer, old.pointer) for old in known)]


def _related(one: str, other: str) -> bool:
    """One of two pointers is at or below the other."""
    return (one + "/").startswith(other + "/") or (other + "/").startswith(one + "/")


# ---- process ---------------------------------------------------------------------------------------------------------


def program(process: Process) -> Problems:
    if not process.args:
        yield Problem("/args", "must not be empty")
    elif not process.args[0]:
        yield Problem("/args/0", "the program's name must not be empty")


def rlimits(process: Process) -> Problems:
    seen = set()
    for number, rlimit in enumerate(process.rlimits):
        if rlimit.type in seen:
            yield Problem(f"/rlimits/{number}/type", f"{rlimit.type} is given twice")
        seen.add(rlimit.type)
        if rlimit.soft > rlimit.hard:
            text = f"{rlimit.type}: soft limit {rlimit.soft} is above the hard one, {rlimit.hard}"
            yield Problem(f"/rlimits/{number}", text)


def scheduler(process: Process) -> Problems:
    """sched_setattr(2)."""
    wanted = process.scheduler
    if wanted is None:
        return
    if wanted.policy in ("SCHED_FIFO", "SCHED_RR"):
        if wanted.priority == 0:
            yield Problem("/scheduler/priority", f"{wanted.policy} needs a priority from 1 to 99")
    elif wanted.priority:
        yield Problem("/scheduler/priority", f"{wanted.priority} is only for SCHED_FIFO and SCHED_RR")
    yield from _deadline(wanted)


def _deadline(wanted: Scheduler) -> Problems:
    if wanted.policy != "SCHED_DEADLINE":
        for name, value in zip(("runtime", "deadline", "period"), wanted[4:7], strict=True):
            if value:
                yield Problem(f"/scheduler/{name}", f"{value} is only for SCHED_DEADLINE")
    elif not 0 < wanted.runtime <= wanted.deadline <= (wanted.period or wanted.deadline):
        yield Problem("/scheduler", "SCHED_DEADLINE needs 0 < runtime <= deadline <= period")


PROCESS_RULES = (Rule(program), Rule(rlimits), Rule(scheduler, needs=("/scheduler",)))

# ---- names and mounts ------------------------------------------------------------------------------------------------


def host_names(spec: Spec) -> Problems:
    for field, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if name is None:
            continue
        if len(name.encode("utf-8", "replace")) > 64:  # __NEW_UTS_LEN
            yield Problem(f"/{field}", f"{show(name)} is longer than 64 bytes")
        if spec.linux.namespace("uts") is None:
            yield Problem(f"/{field}", f"unable to set {field} {show(name)} without a private UTS namespace")


PROC_BINDS = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)


def mounts(spec: Spec) -> Problems:
    for number, mount in enumerate(spec.mounts):
        at = f"/mounts/{number}"
        yield from (Problem(f"{at}/destination", text) for text in _destination(mount))
        if is_bind(mount):
            if mount.source is None:
                yield Problem(f"{at}/source", "a bind mount needs one")
        elif mount.type is None:
            yield Problem(f"{at}/type", "is required for what is no bind mount")


def _destination(mount: Mount) -> Iterator[str]:
    where = rooted(mount.destination)
    if where == "/":
        yield f"{show(mount.destination)} is the top of the rootfs"
    elif where == "/proc":
        if mount.type != "proc" and not is_bind(mount):
            yield f"{show(mount.destination)} cannot be mounted because it is not of type proc"
    elif where.startswith("/proc/") and where not in PROC_BINDS:
        yield f"{show(mount.destination)} cannot be mounted because it is inside /proc"


def swap_alone(spec: Spec) -> Problems:
    """A new cgroup has no memory limit that the total could be above (an update may rely on the old one)."""
    memory = spec.linux.resources.memory
    if memory.swap is not None and memory.swap > 0 and not memory.limit:
        yield Problem("/linux/resources/memory/swap", f"unable to set swap limit {memory.swap} without a memory limit")


def without_mount_namespace(spec: Spec) -> Problems:
    """Without one these would change the mounts of the runtime itself."""
    if spec.linux.namespace("mount") is not None:
        return
    for at, asked, text in (
        ("/root/readonly", spec.root.readonly, "unable to make the rootfs read-only"),
        ("/mounts", spec.mounts, "unable to mount"),
        ("/linux/rootfsPropagation", spec.linux.rootfs_propagation, "unable to set the propagation of the rootfs"),
        ("/linux/maskedPaths", spec.linux.masked_paths, "unable to restrict sys entries"),
        ("/linux/readonlyPaths", spec.linux.readonly_paths, "unable to restrict sys entries"),
    ):
        if asked:
            yield Problem(at, f"{text} without a private mount namespace")


# ---- namespaces ------------------------------------------------------------------------------------------------------


def namespaces(spec: Spec) -> Problems:
    seen = set()
    for number, namespace in enumerate(spec.linux.namespaces):
        if namespace.type in seen:
            yield Problem(f"/linux/namespaces/{number}/type", f"duplicate namespace {show(namespace.type)}")
        seen.add(namespace.type)


def time_namespace(spec: Spec) -> Problems:
    if not spec.linux.time_offsets:
        return
    namespace = spec.linux.namespace("time")
    if namespace is None:
        yield Problem("/linux/timeOffsets", "given without a time namespace")
    elif namespace.path is not None:
        yield Problem("/linux/timeOffsets", f"a joined time namespace ({show(namespace.path)}) has its own")


# ---- sysctl, devices, seccomp ----------------------------------------------------------------------------------------

IPC_SYSCTLS = frozenset(
    "kernel/" + name for name in ("msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni")
)


def sysctls(spec: Spec) -> Problems:
    for key in spec.linux.sysctl:
        if text := _sysctl(spec, key):
            yield Problem(pointer("linux", "sysctl", key), text)


def _sysctl(spec: Spec, key: str) -> str:
    """/proc/sys is only in part divided into namespaces; the rest would be set for the whole machine."""
    try:
        path = sysctl_path(key)
    except ValueError as error:
        return str(error)
    if path == "kernel/hostname":
        return "conflicts with the hostname field"
    for kind, belongs in (
        ("ipc", path in IPC_SYSCTLS or path.startswith("fs/mqueue/")),
        ("network", path.startswith("net/")),
        ("uts", path == "kernel/domainname"),
        ("user", path.startswith("user/")),
    ):
        if belongs:
            private = spec.linux.namespace(kind) is not None
            return "" if private else f"not allowed without a private {kind} namespace"
    return "is not in a separate kernel namespace"


def devices(spec: Spec) -> Problems:
    for number, device in enumerate(spec.linux.devices):
        at = f"/linux/devices/{number}"
        if rooted(device.path) == "/":
            yield Problem(f"{at}/path", f"{show(device.path)} is the top of the rootfs")
        if device.type != "p":
            yield from (Problem(f"{at}/{field}", text) for field, text in _device_number(device))


def _device_number(device: Device) -> Iterator[tuple[str, str]]:
    """The kernel's dev_t has 12 and 20 bits; it would truncate larger numbers silently to those of another device."""
    for field, number, bits in (("major", device.major, 12), ("minor", device.minor, 20)):
        if not 0 <= number < 1 << bits:
            yield field, f"{number} is not between 0 and {(1 << bits) - 1}"


def seccomp(spec: Spec) -> Problems:
    wanted = spec.linux.seccomp
    if wanted is None:
        return
    at = "/linux/seccomp"
    yield from _action(at, "defaultErrnoRet", wanted.default_action, wanted.default_errno_ret)
    if wanted.default_action == NOTIFY:
        yield Problem(f"{at}/defaultAction", f"{NOTIFY} cannot be used as default action")
    yield from _syscalls(wanted, f"{at}/syscalls")
    yield from _listener(wanted, at)


def _syscalls(wanted: Seccomp, at: str) -> Problems:
    for number, rule in enumerate(wanted.syscalls):
        if not rule.names:
            yield Problem(f"{at}/{number}/names", "must not be empty")
        yield from _action(f"{at}/{number}", "errnoRet", rule.action, rule.errno_ret)
        if rule.action == NOTIFY and "write" in rule.names:
            # Init tells the runtime by a write where the listener is, for which the agent could not be asked yet.
            yield Problem(f"{at}/{number}/names", f"{NOTIFY} cannot be used for the write syscall")


def _listener(wanted: Seccomp, at: str) -> Problems:
    path = wanted.listener_path
    if path is None:
        if any(rule.action == NOTIFY for rule in wanted.syscalls):
            yield Problem(f"{at}/listenerPath", f"is required with {NOTIFY}")
        if wanted.listener_metadata is not None:
            yield Problem(f"{at}/listenerMetadata", "given without listenerPath")
    elif not path.startswith(("/", "@")):
        yield Problem(f"{at}/listenerPath", f"{show(path)} is neither an absolute path nor an abstract name (@name)")


def _action(at: str, errno_field: str, action: str, errno: int | None) -> Problems:
    if errno is None or not action:
        return
    if action not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        yield Problem(f"{at}/{errno_field}", f"{errno} has no meaning with {action}")
    elif action == "SCMP_ACT_ERRNO" and errno > 4095:  # MAX_ERRNO
        yield Problem(f"{at}/{errno_field}", f"{errno} is not an error number (at most 4095)")


SPEC_RULES = (
    Rule(host_names, needs=("/linux/namespaces",)),
    Rule(mounts),
    Rule(mappings.mapped_mounts, needs=("/linux/namespaces",)),
    Rule(without_mount_namespace, needs=("/linux/namespaces",)),
    Rule(mappings.user_namespace, needs=("/linux/namespaces",)),
    Rule(mappings.id_mappings),
    Rule(mappings.mapped_ids, needs=("/linux/namespaces", "/linux/uidMappings", "/linux/gidMappings")),
    Rule(sysctls, needs=("/linux/namespaces",)),
    Rule(namespaces),
    Rule(devices),
    Rule(seccomp),
    Rule(hardware.net_devices, needs=("/linux/namespaces",)),
    Rule(hardware.intel_rdt),
    Rule(hardware.memory_policy),
    Rule(time_namespace, needs=("/linux/namespaces",)),
    Rule(swap_alone, needs=("/linux/resources/memory/limit",)),
)

# ---- resources -------------------------------------------------------------------------------------------------------


def swap(resources: Resources) -> Problems:
    """``swap`` is memory and swap together."""
    limit, total = resources.memory.limit, resources.memory.swap
    if total is None or total <= 0 or limit is None or limit == 0:
        return
    if limit < 0:
        yield Problem("/memory/swap", f"{total} limits swap while memory is unlimited")
    elif total < limit:
        yield Problem("/memory/swap", f"{total} (memory and swap together) is below the memory limit, {limit}")


RESOURCES_RULES = (Rule(swap),)
