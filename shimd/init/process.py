"""Attributes of the new process: cgroups, namespaces, labels, scheduling, capabilities, ids."""

from __future__ import annotations

import os
from errno import EACCES, EDQUOT, EINVAL, ENOENT, ENOSYS, EPERM

from shimd.init.context import Context, StepFailed
from shimd.linux import caps, numa, process, sched, seccomp
from shimd.linux.netlink import link_up
from shimd.linux.proc import open_below
from shimd.plan import ops


def oom_score_adj(ctx: Context, op: ops.OomScoreAdj) -> None:
    try:
        _write("/proc/self/oom_score_adj", str(op.value))
    except OSError as e:
        if e.errno != EACCES or not op.tolerate:
            raise StepFailed.of(f"write {op.value} to /proc/self/oom_score_adj", e) from e


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def join_cgroup(ctx: Context, op: ops.JoinCgroup) -> None:
    for slot in op.slots:
        fd = ctx.take(slot)
        try:
            os.write(fd, b"0")
        except OSError as e:
            raise StepFailed.of(f"enter the cgroup of {slot}", e) from e
        finally:
            os.close(fd)


def set_namespaces(ctx: Context, op: ops.Setns) -> None:
    fd = ctx.slots[op.slot] if op.slot in ctx.slots else ctx.take(op.slot)  # a pidfd may serve several operations
    process.setns(fd, op.flags)
    if op.flags & process.CLONE_NEWNS:
        ctx.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def unshare(ctx: Context, op: ops.Unshare) -> None:
    process.unshare(op.flags)


def time_offsets(ctx: Context, op: ops.TimeOffsets) -> None:
    lines = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in op.offsets)
    _write("/proc/self/timens_offsets", lines)


def dumpable(ctx: Context, op: ops.Dumpable) -> None:
    process.set_dumpable(int(op.dumpable))


def become_root(ctx: Context, op: ops.BecomeRoot) -> None:
    for change in (os.setresgid, os.setresuid):
        try:
            change(0, 0, 0)
        except OSError as e:
            if e.errno != EINVAL:  # 0 is not mapped
                raise


def session_keyring(ctx: Context, op: ops.SessionKeyring) -> None:
    """Not the runtime's. Whoever has its owner's uid may find it, which takes its name; that is for an exec to come, so
    root of another container is given nothing beside.
    """
    try:
        serial = _join_labelled(ctx, op) if op.label else process.keyctl_join_session_keyring(op.name)
        if serial:  # 0: it is the session keyring of the caller already
            permissions = int(process.keyctl_describe(serial).split(";")[3], 16)
            process.keyctl_setperm(serial, permissions & process.KEY_POSSESSOR | process.KEY_USR_SEARCH)
    except OSError as e:
        if e.errno not in (ENOSYS, EDQUOT):
            raise
        ctx.warn(f"no session keyring: {e.strerror}")


def _join_labelled(ctx: Context, op: ops.SessionKeyring) -> int:
    """One of that name with another label than a new one has is somebody else's, who has guessed the name."""
    _label_keys(ctx, op.label)
    label = process.keyctl_get_security(process.keyctl_join_session_keyring(None))
    serial = process.keyctl_join_session_keyring(op.name)
    if process.keyctl_get_security(serial) != label:
        serial = process.keyctl_join_session_keyring(f"_ses.{os.urandom(16).hex()}")
    _label_keys(ctx, "")
    return serial


def _label_keys(ctx: Context, label: str) -> None:
    """Of keys and keyrings to be made: SELinux's."""
    try:
        _write_attribute(ctx, "keycreate", label)
    except OSError as e:
        raise StepFailed.of(f"set SELinux label {label} of new keys", e) from e


def loopback_up(ctx: Context, op: ops.LoopbackUp) -> None:
    link_up("lo")


def hostname(ctx: Context, op: ops.Hostname) -> None:
    process.sethostname(op.name)


def domainname(ctx: Context, op: ops.Domainname) -> None:
    process.setdomainname(op.name)


def sysctl(ctx: Context, op: ops.Sysctl) -> None:
    """Through a procfs that nobody can have mounted over: a redirected write would change the host (CVE-2025-52881)."""
    try:
        fd = open_below(ctx.open_procfs(), f"sys/{op.key}", os.O_WRONLY)
        try:
            os.write(fd, op.value.encode())
        finally:
            os.close(fd)
    except OSError as e:
        raise StepFailed.of(f"write {op.value!r} to /proc/sys/{op.key}", e) from e


def apparmor(ctx: Context, op: ops.AppArmor) -> None:
    try:
        _write_attribute(ctx, "apparmor/exec", f"exec {op.profile}")
    except OSError as e:
        hint = "no such profile is loaded" if e.errno == ENOENT else e.strerror or ""
        raise StepFailed(f"set AppArmor profile {op.profile}", e.errno or 0, hint) from e


def selinux_exec(ctx: Context, op: ops.SelinuxExec) -> None:
    _write_attribute(ctx, "exec", op.label)


def _write_attribute(ctx: Context, name: str, text: str) -> None:
    """Not by /proc/self: on a procfs that an image prepared the label would go nowhere (CVE-2019-16884)."""
    fd = open_below(ctx.open_procfs(), f"{os.getpid()}/attr/{name}", os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def no_new_privileges(ctx: Context, op: ops.NoNewPrivileges) -> None:
    process.set_no_new_privs()


def scheduler(ctx: Context, op: ops.Scheduler) -> None:
    try:
        sched.sched_setattr(0, **op._asdict())
    except OSError as e:
        if e.errno != EPERM:
            raise
        hint = "not permitted here; a process scheduler can't be used together with AllowedCPUs, a part of the CPUs"
        raise StepFailed(op.describe(), EPERM, hint) from e


def io_priority(ctx: Context, op: ops.IoPriority) -> None:
    sched.ioprio_set(0, io_class=op.io_class, data=op.data)


def set_personality(ctx: Context, op: ops.Personality) -> None:
    process.personality(op.domain)


def memory_policy(ctx: Context, op: ops.MemoryPolicy) -> None:
    numa.set_mempolicy(op.mode, op.nodes)


def cpu_affinity(ctx: Context, op: ops.CpuAffinity) -> None:
    if op.cpus:
        os.sched_setaffinity(0, op.cpus)
    else:
        sched.set_affinity_all()


def umask(ctx: Context, op: ops.Umask) -> None:
    os.umask(op.mask)


def load_seccomp(ctx: Context, op: ops.Seccomp) -> None:
    listener = seccomp.load_filter(op.program, op.flags)
    if op.flags & seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER:
        ctx.offer_listener(listener, send=op.send)


def bounding_set(ctx: Context, op: ops.BoundingSet) -> None:
    caps.drop_bounding(op.keep)


def become_user(ctx: Context, op: ops.User) -> None:
    if op.keep_caps:
        process.set_keepcaps(1)
    if op.groups is not None:
        try:
            os.setgroups(op.groups)
        except PermissionError:
            if op.groups or not _groups_are_denied(ctx):
                raise
    os.setresgid(op.gid, op.gid, op.gid)
    os.setresuid(op.uid, op.uid, op.uid)
    if op.keep_caps:
        process.set_keepcaps(0)


def _groups_are_denied(ctx: Context) -> bool:
    """For ever, in a user namespace that an ordinary user has made and this process joined."""
    fd = open_below(ctx.open_procfs(), f"{os.getpid()}/setgroups", os.O_RDONLY)
    try:
        return os.read(fd, 16) == b"deny\n"
    finally:
        os.close(fd)


def capabilities(ctx: Context, op: ops.Capabilities) -> None:
    caps.capset(caps.CapSets(op.effective, op.permitted, op.inheritable))
    caps.ambient_clear()
    for number in range(op.ambient.bit_length()):
        if op.ambient >> number & 1:
            try:
                caps.ambient_raise(number)
            except OSError as e:
                ctx.warn(f"can't raise ambient capability {caps.NAMES[number]}: {(e.strerror or '').lower()}")
