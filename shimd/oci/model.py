"""config.json of the OCI runtime specification 1.3 as frozen records: what ``shimd.oci.read`` makes of a document.

Names are the specification's in snake_case (``class`` is ``class_``). Shapes, the same everywhere:

- an optional scalar that is absent, null, or an empty string is None; a boolean without a "not given" meaning is False;
- a list is a tuple, a map a read-only mapping (``dict(…)`` before it goes to ``json``); absent is empty. Where an empty
  one means something else than an absent one (``Seccomp.flags``, ``Process.capabilities``) absent is None;
- an object whose absence means the same as its being empty is always there: ``spec.linux.resources.memory.limit``
  needs no guard;
- ids are 0 … 2^32-2, limits as wide as the specification's Go types, times in the specification's units.

Records are shared between containers through the reader's cache: never put anything mutable of your own into one.
"""

from __future__ import annotations

from shimd.records import Record
from shimd.typed import Any, Mapping, MappingProxyType

Pairs = Mapping[str, str]

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Root(Record):
    """``path`` as written: absolute, or relative to the bundle."""

    path: str = ""
    readonly: bool = False


class IdMapping(Record):
    container_id: int = 0
    host_id: int = 0
    size: int = 0


class Mount(Record):
    """``destination`` as written (a relative one is taken from /); ``options`` uninterpreted."""

    destination: str = ""
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Hook(Record):
    """``timeout`` in seconds, > 0."""

    path: str = ""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(Record):
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


# ---- process ---------------------------------------------------------------------------------------------------------


class User(Record):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class ConsoleSize(Record):
    height: int = 0
    width: int = 0


class Capabilities(Record):
    """Names as written, ``CAP_…``; some may be unknown to this kernel."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Record):
    """``type`` is RLIMIT_*; 2^64-1 is unlimited."""

    type: str = ""
    hard: int = 0
    soft: int = 0


class Scheduler(Record):
    """``policy`` SCHED_*, ``flags`` SCHED_FLAG_*; runtime, deadline and period in nanoseconds."""

    policy: str = ""
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IoPriority(Record):
    """``class_`` is IOPRIO_CLASS_RT, _BE or _IDLE."""

    class_: str = ""
    priority: int = 0


class CpuAffinity(Record):
    """CPU lists as written ("0-3,7"), checked; ``cpu_list`` in ``shimd.oci.values`` parses them."""

    initial: str | None = None
    final: str | None = None


class Process(Record):
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = ""
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str | None = None
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: CpuAffinity | None = None


# ---- linux.resources -------------------------------------------------------------------------------------------------


class DeviceRule(Record):
    """``type`` is "a", "b" or "c"; None is any for ``major`` and ``minor``; ``access`` of the letters rwm."""

    allow: bool = False
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str | None = None


class Memory(Record):
    """Bytes; -1 is unlimited. ``swap`` is memory and swap together. ``kernel`` and ``kernel_tcp`` are deprecated."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(Record):
    """Times in microseconds; ``cpus`` and ``mems`` are lists as written."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


class Pids(Record):
    limit: int | None = None


class WeightDevice(Record):
    major: int = 0
    minor: int = 0
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(Record):
    major: int = 0
    minor: int = 0
    rate: int = 0


class BlockIo(Record):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = ()


class HugepageLimit(Record):
    """``page_size`` as in the control files' names: "2MB", "1GB", "64KB"."""

    page_size: str = ""
    limit: int = 0


class InterfacePriority(Record):
    name: str = ""
    priority: int = 0


class Network(Record):
    class_id: int | None = None
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(Record):
    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(Record):
    devices: tuple[DeviceRule, ...] = ()
    memory: Memory = Memory()
    cpu: Cpu = Cpu()
    pids: Pids = Pids()
    block_io: BlockIo = BlockIo()
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network = Network()
    rdma: Mapping[str, Rdma] = NOTHING
    unified: Pairs = NOTHING


# ---- linux -----------------------------------------------------------------------------------------------------------


class Namespace(Record):
    """``type`` is pid, network, ipc, uts, mount, user, cgroup or time; ``path`` None is a new one."""

    type: str = ""
    path: str | None = None


class Device(Record):
    """``type`` is c, u (the same as c), b or p; ``file_mode`` are permission bits (None: 0666)."""

    path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class NetDevice(Record):
    name: str | None = None


class SeccompArg(Record):
    """``op`` is SCMP_CMP_*; ``value_two`` is the second operand of SCMP_CMP_MASKED_EQ."""

    index: int = 0  # type: ignore[assignment]  # the specification's name; it hides tuple.index
    value: int = 0
    value_two: int = 0
    op: str = ""


class SyscallRule(Record):
    """``action`` is SCMP_ACT_*; ``errno_ret`` only with SCMP_ACT_ERRNO and SCMP_ACT_TRACE."""

    names: tuple[str, ...] = ()
    action: str = ""
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(Record):
    """``flags`` None (absent) lets the runtime choose; an empty tuple asks for no flag."""

    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SyscallRule, ...] = ()


class IntelRdt(Record):
    clos_id: str | None = None
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    enable_monitoring: bool = False


class MemoryPolicy(Record):
    mode: str = ""
    nodes: str | None = None
    flags: tuple[str, ...] = ()


class Personality(Record):
    """``domain`` is LINUX or LINUX32; ``flags`` are ignored with a warning."""

    domain: str = ""
    flags: tuple[str, ...] = ()


class TimeOffset(Record):
    secs: int = 0
    nanosecs: int = 0


class Linux(Record):
    """``time_offsets`` has the keys monotonic and boottime."""

    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    sysctl: Pairs = NOTHING
    resources: Resources = Resources()
    cgroups_path: str | None = None
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    net_devices: Mapping[str, NetDevice] = NOTHING
    seccomp: Seccomp | None = None
    rootfs_propagation: str | None = None
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str | None = None
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
    time_offsets: Mapping[str, TimeOffset] = NOTHING

    def namespace(self, kind: str) -> Namespace | None:
        """The entry for a namespace type; None: the container shares the runtime's."""
        for namespace in self.namespaces:
            if namespace.type == kind:
                return namespace
        return None


class Spec(Record):
    """A whole config.json. ``process`` and ``root`` are given in every document that ``read_spec`` accepts."""

    oci_version: str | None = None
    process: Process = Process()
    root: Root = Root()
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: Pairs = NOTHING
    linux: Linux = Linux()
