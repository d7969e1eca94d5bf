"""Processes: clone3 as a fork, pidfds, namespaces, limits, prctl, keyrings, signals.

``clone3`` here is fork(2) that also makes namespaces and a pidfd. It enters the kernel directly, so glibc's fork
handlers do not run: no lock of malloc is taken over into the child. Call it only from a process with one thread.
Python's own state is put right by the same three functions that os.fork uses.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no enum members made of numbers, as signal does; no stub exists
import os
import struct
from fcntl import ioctl

from shimd.linux import cdata
from shimd.linux._libc import NR, Argument, address, buffer, encode, syscall
from shimd.linux.signals import signal

CLONE_VM = 0x00000100
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# The name in /proc/<pid>/ns of each kind of namespace.
NAMESPACE_FILES = {
    CLONE_NEWUSER: "user",
    CLONE_NEWCGROUP: "cgroup",
    CLONE_NEWIPC: "ipc",
    CLONE_NEWUTS: "uts",
    CLONE_NEWNET: "net",
    CLONE_NEWPID: "pid",
    CLONE_NEWNS: "mnt",
    CLONE_NEWTIME: "time",
}

NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4
MAX_FD = 0xFFFFFFFF
GLIBC_SIGNALS = (32, 33)  # signal(7): sigaction(3) refuses them
SIGSET_SIZE = 8
SIGACTION_SIZE = 32  # of the kernel's struct; all zero is SIG_DFL

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

RLIM_INFINITY = 2**64 - 1

KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
KEYCTL_DESCRIBE = 6
KEYCTL_GET_SECURITY = 17
KEY_USR_SEARCH = 0x00080000
KEY_POSSESSOR = 0x3F000000  # all permissions of whoever has the key in a keyring of its own

PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes), the size of the first version of struct pidfd_info
_PIDFD_INFO = struct.Struct("=QQ11Ii")

_CLONE_ARGS = struct.Struct("=11Q")
_PATH_MAX = 4096
_RLIMIT = struct.Struct("=QQ")

_before_fork, _after_fork_child, _after_fork_parent = (
    cdata.foreign(cdata.symbol(name), 0, held=True)
    for name in ("PyOS_BeforeFork", "PyOS_AfterFork_Child", "PyOS_AfterFork_Parent")
)


def clone3(flags: int, *, cgroup_fd: int = -1) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child; the pidfd is close-on-exec.

    ``cgroup_fd`` is a cgroup v2 directory that the child is born in. With CLONE_PARENT the caller's parent reaps the
    child. One thread only.
    """
    pidfd = cdata.Number(-1)
    flags |= CLONE_PIDFD
    if cgroup_fd >= 0:
        flags |= CLONE_INTO_CGROUP
    exit_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    fields = (flags, cdata.address(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup_fd, 0))
    arguments = buffer(_CLONE_ARGS.pack(*fields))
    pid = _fork("clone3", arguments, _CLONE_ARGS.size)
    return pid, pidfd.value if pid else -1


def clone(flags: int) -> tuple[int, int]:
    """As clone3 for what the older clone(2) knows too: many seccomp filters refuse clone3, whose arguments they cannot
    see.
    """
    pidfd = cdata.Number(-1)
    exit_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    pid = _fork("clone", flags | CLONE_PIDFD | exit_signal, 0, cdata.address(pidfd), 0, 0)
    return pid, pidfd.value if pid else -1


def _fork(name: str, *arguments: Argument) -> int:
    """A system call that makes a process, between what Python does before and after os.fork."""
    _before_fork()
    try:
        pid = syscall(NR[name], *arguments)
    except OSError:
        _after_fork_parent()
        raise
    if pid:
        _after_fork_parent()
    else:
        _after_fork_child()
    return pid


def setns(fd: int, flags: int) -> None:
    """``fd`` is a namespace file, or a pidfd with several CLONE_NEW* at once. A pid or time namespace takes effect for
    children.
    """
    syscall(NR["setns"], fd, flags)


def unshare(flags: int) -> None:
    syscall(NR["unshare"], flags)


def namespace_type(fd: int) -> int:
    """CLONE_NEW* of an nsfs file; ENOTTY when it is something else."""
    return ioctl(fd, NS_GET_NSTYPE)


def owning_user_namespace(fd: int) -> int:
    """A new descriptor of the user namespace that a namespace belongs to; EPERM for one outside of our own."""
    return ioctl(fd, NS_GET_USERNS)


def pidfd_open(pid: int) -> int:
    return syscall(NR["pidfd_open"], pid, 0)


def pidfd_send_signal(fd: int, signal_number: int) -> None:
    syscall(NR["pidfd_send_signal"], fd, signal_number, None, 0)


def pidfd_getfd(fd: int, target_fd: int) -> int:
    return syscall(NR["pidfd_getfd"], fd, target_fd, 0)


def pidfd_exit_status(fd: int) -> int | None:
    """The wait status of a reaped process, from Linux 6.15 on; None when the kernel cannot tell or the process is not
    reaped.
    """
    info = bytearray(_PIDFD_INFO.pack(PIDFD_INFO_EXIT, *(0,) * 13))
    try:
        ioctl(fd, _PIDFD_GET_INFO, info)
    except OSError:  # ENOTTY: before 6.13; EINVAL; ESRCH: reaped, before 6.15
        return None
    mask, *_, exit_code = _PIDFD_INFO.unpack(info)
    return exit_code if mask & PIDFD_INFO_EXIT else None


def prlimit(pid: int, resource: int, soft: int, hard: int) -> None:
    """Limits are unsigned 64 bit, RLIM_INFINITY for none; ``pid`` 0 is the caller."""
    syscall(NR["prlimit64"], pid, resource, _RLIMIT.pack(soft, hard), None)


def get_rlimit(pid: int, resource: int) -> tuple[int, int]:
    old = buffer(bytes(_RLIMIT.size))
    syscall(NR["prlimit64"], pid, resource, None, old)
    soft, hard = _RLIMIT.unpack(old.raw)
    return soft, hard


def prctl(option: int, a: int | bytes = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    return syscall(NR["prctl"], option, a, b, c, d)


def set_no_new_privs() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(value: int) -> None:
    prctl(PR_SET_DUMPABLE, value)


def get_dumpable() -> int:
    return prctl(PR_GET_DUMPABLE)


def set_keepcaps(value: int) -> None:
    """1: keep permitted capabilities over the next setresuid(2) away from 0; cleared by execve."""
    prctl(PR_SET_KEEPCAPS, value)


def set_pdeathsig(signal_number: int) -> None:
    """The signal when the *thread* that made this process ends; cleared by execve of privileged files and by changes
    of ids.
    """
    prctl(PR_SET_PDEATHSIG, signal_number)


def set_child_subreaper(value: int) -> None:
    prctl(PR_SET_CHILD_SUBREAPER, value)


def set_name(name: str) -> None:
    """The name in ps; the kernel keeps 15 bytes."""
    prctl(PR_SET_NAME, encode(name) + b"\0")


def close_range(first: int, last: int, flags: int) -> None:
    syscall(NR["close_range"], first, last, flags)


def personality(domain: int) -> int:
    """Sets and returns the previous one; 0xffffffff only asks."""
    return syscall(NR["personality"], domain)


def getcwd() -> bytes:
    """As the kernel has it, getcwd(2): "(unreachable)/…" outside of the root, where getcwd(3) fails or guesses."""
    out = buffer(bytes(_PATH_MAX))
    syscall(NR["getcwd"], out, len(out))
    return out.value


def signalfd(*signals: int) -> int:
    """A non-blocking descriptor that is readable while one of ``signals``, which the caller blocks, is pending."""
    mask = sum(1 << number - 1 for number in signals)
    return syscall(NR["signalfd4"], -1, mask.to_bytes(8, "little"), 8, os.O_CLOEXEC | os.O_NONBLOCK)


def sethostname(name: str) -> None:
    data = os.fsencode(name)
    syscall(NR["sethostname"], data, len(data))


def setdomainname(name: str) -> None:
    data = os.fsencode(name)
    syscall(NR["setdomainname"], data, len(data))


def reset_signals() -> None:
    """Every disposition to default and an empty mask: ignored signals and the mask survive execve(2), Python ignores
    SIGPIPE, and glibc's posix_spawn(3) those that it keeps for its threads.
    """
    for number in range(1, signal.NSIG):
        if number in GLIBC_SIGNALS:
            syscall(NR["rt_sigaction"], number, bytes(SIGACTION_SIZE), None, SIGSET_SIZE)
        elif number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def reset_ignored_signals() -> None:
    """What ``reset_signals`` does, right before execve(2) and at the price of few system calls: execve resets caught
    signals by itself, and Python knows which it found or made ignored.
    """
    for number in range(1, signal.NSIG):
        if number in GLIBC_SIGNALS:
            syscall(NR["rt_sigaction"], number, bytes(SIGACTION_SIZE), None, SIGSET_SIZE)
        elif _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keyctl_join_session_keyring(name: str | None) -> int:
    """The serial number of a new keyring, or of an existing one with this name that the caller may search."""
    return syscall(NR["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None if name is None else encode(name))


def keyctl_describe(serial: int) -> str:
    """ "keyring;uid;gid;permissions in hex;name"."""
    out = buffer(bytes(512))
    syscall(NR["keyctl"], KEYCTL_DESCRIBE, serial, out, len(out))
    return out.value.decode(errors="replace")


def keyctl_get_security(serial: int) -> str:
    """The label that a security module has given it, "" without one."""
    out = buffer(bytes(4096))
    syscall(NR["keyctl"], KEYCTL_GET_SECURITY, serial, out, len(out))
    return out.value.decode(errors="replace")


def keyctl_setperm(serial: int, permissions: int) -> None:
    syscall(NR["keyctl"], KEYCTL_SETPERM, serial, permissions)


def execveat(fd: int, argv: tuple[str, ...], env: tuple[str, ...]) -> None:
    """Run the program that ``fd`` refers to; returns only by OSError. ``env`` are "NAME=value" strings."""
    keep = [buffer(encode(item) + b"\0") for item in (*argv, *env)]
    pointers = [address(item) for item in keep]
    arguments = buffer(struct.pack(f"={len(argv) + 1}Q", *pointers[: len(argv)], 0))
    environment = buffer(struct.pack(f"={len(env) + 1}Q", *pointers[len(argv) :], 0))
    syscall(NR["execveat"], fd, b"\0", arguments, environment, AT_EMPTY_PATH)
