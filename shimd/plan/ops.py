"""The operations of a plan: small frozen records, each one thing that the new process does.

A plan is compiled once (``shimd.plan.compile``), printed by ``describe()``, sent as bytes (``shimd.plan.wire``) and
executed in order by ``shimd.init.execute``. Records hold only str, int, bytes, bool, None and tuples of these, so that
any of ``json`` and ``marshal`` can carry them. Descriptors are never numbers in a record but *slots*: names that the
launcher binds.

Slots used: ``stdin`` ``stdout`` ``stderr`` (the process's stdio when there is no terminal), ``control`` (SOCK_SEQPACKET
to the runtime, see ``shimd.init.handshake``), ``start`` (listening unix socket that ``start`` connects to), ``console``
(unix stream socket of --console-socket, absent: the pty master goes over ``control``), ``cgroup.N`` (a cgroup.procs
file open for writing), ``rdt.N`` (a tasks file of resctrl), ``ns.N`` (nsfs files), ``init`` (pidfd of the container's
init, for exec), ``rootfs`` and ``mount.N`` (detached mount trees opened by the runtime, for user namespaces),
``preserve.N`` (passed to the program as descriptor 3+N). ``ids.N`` (user namespaces of id-mapped mounts) are the
runtime's alone.
"""

from __future__ import annotations

from shimd.linux.caps import NAMES as CAPABILITY_NAMES
from shimd.linux.numa import FLAGS, MODES
from shimd.linux.process import NAMESPACE_FILES
from shimd.plan.rootfs_ops import PROC_FILES as PROC_FILES
from shimd.plan.rootfs_ops import Bind as Bind
from shimd.plan.rootfs_ops import FinalizeReadonly as FinalizeReadonly
from shimd.plan.rootfs_ops import MakeDevice as MakeDevice
from shimd.plan.rootfs_ops import MakeDirectory as MakeDirectory
from shimd.plan.rootfs_ops import MaskPaths as MaskPaths
from shimd.plan.rootfs_ops import Mount as Mount
from shimd.plan.rootfs_ops import MountAttr as MountAttr
from shimd.plan.rootfs_ops import MountCgroup1 as MountCgroup1
from shimd.plan.rootfs_ops import MountCgroup2 as MountCgroup2
from shimd.plan.rootfs_ops import PivotRoot as PivotRoot
from shimd.plan.rootfs_ops import PrepareRoot as PrepareRoot
from shimd.plan.rootfs_ops import ReadonlyPath as ReadonlyPath
from shimd.plan.rootfs_ops import Remount as Remount
from shimd.plan.rootfs_ops import SetPropagation as SetPropagation
from shimd.plan.rootfs_ops import Symlink as Symlink
from shimd.records import Record

Origin = str  # JSON pointer of the config.json field that asked for an operation; "" when it is implied


def _namespace_names(flags: int) -> str:
    return ", ".join(name for flag, name in NAMESPACE_FILES.items() if flags & flag)


def _capability_names(mask: int) -> str:
    names = [name.removeprefix("CAP_") for number, name in enumerate(CAPABILITY_NAMES) if mask >> number & 1]
    return "all" if len(names) == len(CAPABILITY_NAMES) else " ".join(names) or "none"


class Sync(Record):
    """Report ``point`` to the runtime and wait for its leave: "cgroup", "maps", "network", "hooks", "ready"."""

    point: str

    def describe(self) -> str:
        return f"wait for the runtime: {self.point}"


class JoinCgroup(Record):
    """Write 0 to each slot, a cgroup.procs or a tasks file of resctrl; the first operation, so that all that follows is
    accounted and confined.
    """

    slots: tuple[str, ...]

    def describe(self) -> str:
        return f"enter the cgroups of {' '.join(self.slots)}"


class Setns(Record):
    """setns(2) with the slot (nsfs file or pidfd) and CLONE_NEW* flags."""

    slot: str
    flags: int

    def describe(self) -> str:
        return f"join {_namespace_names(self.flags)} namespace of {self.slot}"


class Unshare(Record):
    """unshare(2); of the cgroup namespace after JoinCgroup."""

    flags: int

    def describe(self) -> str:
        return f"new {_namespace_names(self.flags)} namespace"


class TimeOffsets(Record):
    """Write /proc/self/timens_offsets (stage only, between unshare and the clone): (clock, secs, nanosecs)."""

    offsets: tuple[tuple[str, int, int], ...]

    def describe(self) -> str:
        return "set time offsets " + ", ".join(f"{c} {s} s {n} ns" for c, s, n in self.offsets)


class Dumpable(Record):
    """PR_SET_DUMPABLE: the files of the process in /proc belong to its user, or to root."""

    dumpable: bool

    def describe(self) -> str:
        return f"be {'dumpable' if self.dumpable else 'not dumpable'}"


class BecomeRoot(Record):
    """setresgid(0), setresuid(0) inside a user namespace whose maps are written; no-op for ids that are not mapped."""

    def describe(self) -> str:
        return "become root of the user namespace"


class SessionKeyring(Record):
    """keyctl(JOIN_SESSION_KEYRING, name), ``label`` as its SELinux keycreate label; ENOSYS and EDQUOT are tolerated."""

    name: str
    label: str

    def describe(self) -> str:
        return f"new session keyring {self.name}"


class LoopbackUp(Record):
    """Bring ``lo`` up in a new network namespace."""

    def describe(self) -> str:
        return "bring up lo"


class HookSpec(Record):
    """One OCI hook: absolute path, argv, environment ("K=V"), timeout in seconds or 0."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    timeout: int


class RunHooks(Record):
    """createContainer or startContainer hooks, run by init; ``state`` is the state JSON before and after the pid."""

    kind: str
    hooks: tuple[HookSpec, ...]
    state: tuple[str, str]

    def describe(self) -> str:
        return f"run {len(self.hooks)} {self.kind} hook(s)"


class Terminal(Record):
    """A pty of the container's devpts as controlling terminal and fds 0-2; /dev/console when ``console_device``.

    The master goes to the ``console`` slot when there is one, else over ``control``. Size 0x0: not set.
    """

    uid: int
    rows: int
    columns: int
    console_device: bool

    def describe(self) -> str:
        return f"open a terminal {self.rows}x{self.columns}"


class Stdio(Record):
    """Slots stdin, stdout, stderr become fds 0-2, owned by ``uid`` (fchown; not /dev/null).

    A missing slot is /dev/null of the container.
    """

    uid: int

    def describe(self) -> str:
        return "set up stdio"


class Hostname(Record):
    name: str

    def describe(self) -> str:
        return f"set hostname {self.name}"


class Domainname(Record):
    name: str

    def describe(self) -> str:
        return f"set domainname {self.name}"


class Sysctl(Record):
    """Write through the verified procfs; ``key`` with slashes, relative to /proc/sys."""

    key: str
    value: str

    def describe(self) -> str:
        return f"set sysctl {self.key} = {self.value}"


class AppArmor(Record):
    """Write ``exec <profile>`` to attr/apparmor/exec (Linux 5.8) through the verified procfs."""

    profile: str

    def describe(self) -> str:
        return f"AppArmor profile {self.profile}"


class SelinuxExec(Record):
    label: str

    def describe(self) -> str:
        return f"SELinux label {self.label}"


class NoNewPrivileges(Record):
    def describe(self) -> str:
        return "set no_new_privs"


class Scheduler(Record):
    """sched_setattr(2)."""

    policy: int
    nice: int
    priority: int
    flags: int
    runtime: int
    deadline: int
    period: int

    def describe(self) -> str:
        return f"scheduler policy {self.policy} nice {self.nice} priority {self.priority}"


class IoPriority(Record):
    """ioprio_set(2), class 1..3 and data 0..7."""

    io_class: int
    data: int

    def describe(self) -> str:
        return f"I/O priority class {self.io_class} data {self.data}"


class Personality(Record):
    domain: int

    def describe(self) -> str:
        return f"personality {self.domain:#x}"


class MemoryPolicy(Record):
    """set_mempolicy(2); ``mode`` includes the flags."""

    mode: int
    nodes: tuple[int, ...]

    def describe(self) -> str:
        names = [name for name, number in MODES.items() if self.mode & ~sum(FLAGS.values()) == number]
        names += [name for name, flag in FLAGS.items() if self.mode & flag]
        nodes = ",".join(map(str, self.nodes))
        return f"memory policy {' | '.join(names)}" + f" of nodes {nodes}" * bool(nodes)


class CpuAffinity(Record):
    """sched_setaffinity(2) of this process; () widens to every CPU."""

    cpus: tuple[int, ...]

    def describe(self) -> str:
        return "CPUs " + (",".join(map(str, self.cpus)) or "all")


class OomScoreAdj(Record):
    """Write /proc/self/oom_score_adj before anything else can fail; EACCES tolerated when ``tolerate``."""

    value: int
    tolerate: bool

    def describe(self) -> str:
        return f"oom_score_adj {self.value}"


class Umask(Record):
    mask: int

    def describe(self) -> str:
        return f"umask {self.mask:04o}"


class Seccomp(Record):
    """seccomp(SECCOMP_SET_MODE_FILTER) with SECCOMP_FILTER_FLAG_* and a classic BPF program (sock_filter array). With
    NEW_LISTENER the runtime is told the descriptor's number, and fetches it for the agent; with ``send`` it gets it.
    """

    flags: int
    program: bytes
    send: bool = False

    def describe(self) -> str:
        return f"load seccomp filter ({len(self.program) // 8} instructions, flags {self.flags:#x})"


class BoundingSet(Record):
    """Drop every capability of the kernel that is not in ``keep`` (a mask)."""

    keep: int

    def describe(self) -> str:
        return f"bounding capabilities: {_capability_names(self.keep)}"


class User(Record):
    """setgroups, setresgid, setresuid, with PR_SET_KEEPCAPS when ``keep_caps``.

    ``groups`` None leaves the groups alone (setgroups is denied in the user namespace).
    """

    uid: int
    gid: int
    groups: tuple[int, ...] | None
    keep_caps: bool

    def describe(self) -> str:
        groups = "" if self.groups is None else ", groups " + (" ".join(map(str, self.groups)) or "none")
        return f"become {self.uid}:{self.gid}{groups}"


class Capabilities(Record):
    """capset(2), then ambient; masks. Ambient failures are warnings."""

    effective: int
    permitted: int
    inheritable: int
    ambient: int

    def describe(self) -> str:
        sets = ("permitted", self.permitted), ("inheritable", self.inheritable), ("ambient", self.ambient)
        others = "".join(f"; {name}: {_capability_names(mask)}" for name, mask in sets if mask != self.effective)
        return f"capabilities: {_capability_names(self.effective)}{others}"


class Chdir(Record):
    """chdir to the cwd, verified to be inside the root; ``late`` runs after User: only when the first attempt failed
    with EACCES or EPERM.
    """

    path: str
    late: bool

    def describe(self) -> str:
        return f"chdir {self.path}" + (" (again, as the user)" if self.late else "")


class HomeEnv(Record):
    """HOME of ``uid`` from the container's /etc/passwd (bounded read), else "/", unless the environment has one."""

    uid: int

    def describe(self) -> str:
        return f"find HOME of {self.uid}"


class FindProgram(Record):
    """Resolve args[0] along the container's PATH, relative to cwd when it has a slash; errors in runc's words."""

    args: tuple[str, ...]
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"find program {self.args[0]} ({len(self.args) - 1} arguments, {len(self.env)} variables)"


class WaitStart(Record):
    """Report "created", close ``control``, wait in accept() on slot ``start``; see shimd.init.handshake.

    ``dumpable``: those who may trace it, may; without privileges nobody else could join its namespaces.
    """

    dumpable: bool = False

    def describe(self) -> str:
        return f"wait for start{', dumpable' if self.dumpable else ''}"


class CloseFds(Record):
    """close_range from 3 + ``keep`` on is close-on-exec; preserve.N slots are moved to 3..2+keep."""

    keep: int

    def describe(self) -> str:
        return "close other descriptors"


class ResetSignals(Record):
    """Every disposition to default, the mask emptied, the parent-death signal as given (0: none)."""

    death_signal: int

    def describe(self) -> str:
        return "reset signals"


class Execute(Record):
    """execve(2) of the program that FindProgram resolved; the last operation."""

    def describe(self) -> str:
        return "execute the program"


Op = (
    Sync | JoinCgroup | Setns | Unshare | TimeOffsets | Dumpable | BecomeRoot | SessionKeyring | LoopbackUp
    | PrepareRoot | Mount | Remount | Bind | MountCgroup1 | MountCgroup2 | MakeDevice | Symlink | RunHooks | PivotRoot
    | MakeDirectory | SetPropagation | Terminal | Stdio | FinalizeReadonly | Hostname | Domainname | Sysctl
    | ReadonlyPath | MaskPaths | AppArmor | SelinuxExec | NoNewPrivileges | Scheduler | IoPriority | Personality
    | MemoryPolicy | CpuAffinity | OomScoreAdj | Umask | Seccomp | BoundingSet | User | Capabilities | Chdir | HomeEnv
    | FindProgram | WaitStart | CloseFds | ResetSignals | Execute
)  # fmt: skip


class Step(Record):
    """An operation and the config.json field that asked for it."""

    op: Op
    origin: Origin


class IdMap(Record):
    container: int
    host: int
    size: int


class Rlimit(Record):
    """prlimit(2) set by the runtime at "ready": resource number, soft, hard (RLIM_INFINITY is 2**64-1)."""

    resource: int
    soft: int
    hard: int


class IdMapSource(Record):
    """A user namespace for id-mapped mounts, which the runtime makes with these maps, or opens at ``path``. It stays
    with the runtime.
    """

    slot: str
    uid_map: tuple[IdMap, ...]
    gid_map: tuple[IdMap, ...]
    path: str


class NetDevice(Record):
    """An interface that the runtime moves into the network namespace, where it is called ``inside``."""

    name: str
    inside: str


class TreeSource(Record):
    """A mount tree that the runtime opens (open_tree, OPEN_TREE_CLONE) and passes as ``slot``; ``id_map`` and
    ``map_all`` as in Bind.
    """

    slot: str
    path: str
    recursive: bool
    id_map: str = ""
    map_all: bool = False


class NamespaceFile(Record):
    """A namespace to join by path: the runtime opens and verifies it (CLONE_NEW* type) and passes it as ``slot``."""

    slot: str
    path: str
    type: int


class Plan(Record):
    """What a launch does. ``clone`` are CLONE_NEW* flags of the new process itself; ``stage`` runs in an intermediate
    process before the clone (joining pid, time and user namespaces that only children enter), empty for the usual
    container.

    The runtime, not init, does: ``namespaces``, ``id_maps``, ``trees`` (open), ``uid_map`` and ``gid_map`` (at
    "maps"), ``net_devices`` (at "network"), ``hooks_prestart`` (prestart, then createRuntime, at "hooks"),
    ``rlimits`` (prlimit at "ready"), cgroups (shimd.cgroups).
    """

    clone: int
    stage: tuple[Step, ...]
    steps: tuple[Step, ...]
    namespaces: tuple[NamespaceFile, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    id_maps: tuple[IdMapSource, ...] = ()
    trees: tuple[TreeSource, ...] = ()
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    deny_setgroups: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    hooks_prestart: tuple[HookSpec, ...] = ()
    warnings: tuple[str, ...] = ()
