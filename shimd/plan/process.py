"""``process`` of config.json or of an exec: identity, limits, security, and how it ends in execve(2)."""

from __future__ import annotations

from shimd.caches import lru_cache
from shimd.linux import caps, numa, sched
from shimd.oci import model
from shimd.oci.values import cpu_list
from shimd.plan import ops
from shimd.plan.builder import Builder
from shimd.plan.options import CompileOptions, ExecOptions
from shimd.records import Record

DEFAULT_UMASK = 0o022

# Of x86 and arm, see getrlimit(2).
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}

_POLICIES = {
    "SCHED_OTHER": sched.SCHED_OTHER,
    "SCHED_FIFO": sched.SCHED_FIFO,
    "SCHED_RR": sched.SCHED_RR,
    "SCHED_BATCH": sched.SCHED_BATCH,
    "SCHED_ISO": 4,  # reserved by the kernel, which refuses it
    "SCHED_IDLE": sched.SCHED_IDLE,
    "SCHED_DEADLINE": sched.SCHED_DEADLINE,
}

_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": sched.SCHED_FLAG_RESET_ON_FORK,
    "SCHED_FLAG_RECLAIM": sched.SCHED_FLAG_RECLAIM,
    "SCHED_FLAG_DL_OVERRUN": sched.SCHED_FLAG_DL_OVERRUN,
    "SCHED_FLAG_KEEP_POLICY": sched.SCHED_FLAG_KEEP_POLICY,
    "SCHED_FLAG_KEEP_PARAMS": sched.SCHED_FLAG_KEEP_PARAMS,
    "SCHED_FLAG_UTIL_CLAMP_MIN": sched.SCHED_FLAG_UTIL_CLAMP_MIN,
    "SCHED_FLAG_UTIL_CLAMP_MAX": sched.SCHED_FLAG_UTIL_CLAMP_MAX,
}

_IO_CLASSES = {
    "IOPRIO_CLASS_RT": sched.IOPRIO_CLASS_RT,
    "IOPRIO_CLASS_BE": sched.IOPRIO_CLASS_BE,
    "IOPRIO_CLASS_IDLE": sched.IOPRIO_CLASS_IDLE,
}

_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


class ProcessPlan(Record):
    """A process and what surrounds it. ``at`` is the JSON pointer of the process in its document, ``linux`` the
    container's; ``groups`` False: setgroups(2) is denied. ``umask`` None leaves the one that is set.
    """

    at: str
    process: model.Process
    linux: model.Linux
    user_namespace: bool
    groups: bool
    umask: int | None
    options: CompileOptions | ExecOptions


def add_stdio(builder: Builder, at: str, process: model.Process, *, console_device: bool) -> None:
    if process.terminal:
        size = process.console_size or model.ConsoleSize()
        terminal = ops.Terminal(process.user.uid, size.height, size.width, console_device)
        builder.add(terminal, f"{at}/terminal")
    else:
        builder.add(ops.Stdio(process.user.uid))


def add_scheduling(builder: Builder, plan: ProcessPlan) -> None:
    """From no_new_privs to the CPU affinity: what needs the runtime's own privileges but no order among itself."""
    at, process = plan.at, plan.process
    if process.no_new_privileges:
        builder.add(ops.NoNewPrivileges(), f"{at}/noNewPrivileges")
    if process.scheduler is not None:
        builder.add(_scheduler(process.scheduler), f"{at}/scheduler")
    if process.io_priority is not None:
        priority = process.io_priority
        builder.add(ops.IoPriority(_IO_CLASSES[priority.class_], priority.priority), f"{at}/ioPriority")
    if plan.linux.personality is not None:
        builder.add(ops.Personality(_PERSONALITIES[plan.linux.personality.domain]), "/linux/personality")
    if plan.linux.memory_policy is not None:
        builder.add(_memory_policy(plan.linux.memory_policy), "/linux/memoryPolicy")


def add_identity(builder: Builder, plan: ProcessPlan) -> None:
    """After "ready": label, filter, capabilities and user, in the order in which each still has the right to."""
    at, process = plan.at, plan.process
    if process.selinux_label:
        builder.add(ops.SelinuxExec(process.selinux_label), f"{at}/selinuxLabel")
    if not process.no_new_privileges:
        # Loading a filter needs no_new_privs or CAP_SYS_ADMIN, which goes with the capabilities below.
        add_filter(builder, plan)
    sets = _capabilities(builder, plan)
    if sets is not None:
        builder.add(ops.BoundingSet(sets[0]), f"{at}/capabilities/bounding")
    builder.add(ops.Chdir(process.cwd, late=False), f"{at}/cwd")
    user = process.user
    groups = user.additional_gids if plan.groups else None
    builder.add(ops.User(user.uid, user.gid, groups, keep_caps=sets is not None), f"{at}/user")
    if sets is not None:
        _, effective, inheritable, permitted, ambient = sets
        builder.add(ops.Capabilities(effective, permitted, inheritable, ambient), f"{at}/capabilities")
    builder.add(ops.Chdir(process.cwd, late=True), f"{at}/cwd")


def add_program(builder: Builder, plan: ProcessPlan) -> None:
    at, process = plan.at, plan.process
    env, has_home = environment(process.env)
    if not has_home:
        builder.add(ops.HomeEnv(process.user.uid))
    builder.add(ops.FindProgram(process.args, env), f"{at}/args")
    if plan.umask is not None:
        builder.add(ops.Umask(plan.umask), f"{at}/user/umask")


def add_execute(builder: Builder, plan: ProcessPlan, *, filtered: bool = False) -> None:
    builder.add(ops.CloseFds(plan.options.preserve_fds))
    builder.add(ops.ResetSignals(plan.options.death_signal))
    if not filtered:
        add_last_filter(builder, plan)
    builder.add(ops.Execute(), f"{plan.at}/args")


def add_last_filter(builder: Builder, plan: ProcessPlan) -> None:
    """As late as possible: a profile need not allow what init does. Without no_new_privs it is there already."""
    if plan.process.no_new_privileges:
        add_filter(builder, plan)


def add_filter(builder: Builder, plan: ProcessPlan) -> None:
    profile = plan.linux.seccomp
    if profile is not None:
        from shimd.plan.seccomp import compile_filter, notifies

        compiled = compile_filter(profile, builder.host, cache=plan.options.seccomp_cache)
        builder.warnings += compiled.warnings
        if builder.host.euid != 0 and notifies(profile) and isinstance(plan.options, CompileOptions):
            # So that a runtime without privileges may fetch the listener before any call has to wait for its answers.
            # Not so for exec: the container's processes, of the same user, must not get hold of one that joins them.
            builder.add(ops.Dumpable(dumpable=True), "/linux/seccomp")
        builder.add(ops.Seccomp(compiled.flags, compiled.program, send=builder.host.euid != 0), "/linux/seccomp")


def add_oom_score(builder: Builder, at: str, value: int | None) -> None:
    if value is not None:
        unprivileged = builder.host.euid != 0 or builder.host.in_userns
        builder.add(ops.OomScoreAdj(value, tolerate=unprivileged), f"{at}/oomScoreAdj")


def rlimits(process: model.Process) -> tuple[ops.Rlimit, ...]:
    return tuple([ops.Rlimit(RLIMITS[limit.type], limit.soft, limit.hard) for limit in process.rlimits])


def cpus(text: str | None) -> tuple[int, ...]:
    """() for all of them."""
    return cpu_list(text) if text else ()


def environment(env: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The variables without the earlier ones of the same name and without an empty HOME; whether HOME is among them."""
    last: dict[str, str] = {}
    for variable in env:
        name = variable.partition("=")[0]
        last.pop(name, None)
        last[name] = variable
    if last.get("HOME") == "HOME=":
        del last["HOME"]
    return tuple(last.values()), "HOME" in last


def _scheduler(wanted: model.Scheduler) -> ops.Scheduler:
    flags = 0
    for name in wanted.flags:
        flags |= _SCHEDULER_FLAGS[name]
    return ops.Scheduler(
        _POLICIES[wanted.policy],
        wanted.nice,
        wanted.priority,
        flags,
        wanted.runtime,
        wanted.deadline,
        wanted.period,
    )


def _memory_policy(wanted: model.MemoryPolicy) -> ops.MemoryPolicy:
    mode = numa.MODES[wanted.mode]
    for name in wanted.flags:
        mode |= numa.FLAGS[name]
    return ops.MemoryPolicy(mode, cpu_list(wanted.nodes) if wanted.nodes else ())


def _capabilities(builder: Builder, plan: ProcessPlan) -> tuple[int, ...] | None:
    """The five masks in the order of the specification; None when the configuration says nothing about them.

    What cannot be granted is warned of and left out, as the specification wants it; what this kernel does not know has
    been warned of by validation. In a user namespace of its own the process has them all.
    """
    wanted = plan.process.capabilities
    if wanted is None:
        return None
    known = (1 << builder.host.last_cap + 1) - 1
    available = known if plan.user_namespace else known & builder.host.effective_caps
    bounding, *masks = [_mask(names) & known for names in wanted]
    missing = (masks[0] | masks[1] | masks[2] | masks[3]) & ~available
    if missing:
        names = ", ".join(name for name, number in caps.NUMBERS.items() if missing >> number & 1)
        builder.warn(f"{plan.at}/capabilities", f"not available here, left out: {names}")
    return bounding, *[mask & available for mask in masks]


@lru_cache(maxsize=256)
def _mask(names: tuple[str, ...]) -> int:
    mask = 0
    for name in names:
        if name in caps.NUMBERS:
            mask |= 1 << caps.NUMBERS[name]
    return mask
