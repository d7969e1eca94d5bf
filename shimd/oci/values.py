"""The vocabularies and little languages inside config.json: enumerations, CPU lists, sysctl names, paths."""

from __future__ import annotations

import posixpath


def _prefixed(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names.split())


NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS = ("private", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
PERSONALITIES = ("LINUX", "LINUX32")
IO_PRIORITY_CLASSES = ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
MEMORY_POLICY_FLAGS = ("MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES")

# In the order of the kernel's numbers.
CAPABILITIES = _prefixed(
    "CAP_",
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE",
)
RLIMITS = _prefixed(
    "RLIMIT_",
    "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK",
)
SCHEDULER_POLICIES = _prefixed("SCHED_", "OTHER FIFO RR BATCH ISO IDLE DEADLINE")
SCHEDULER_FLAGS = _prefixed(
    "SCHED_FLAG_", "RESET_ON_FORK RECLAIM DL_OVERRUN KEEP_POLICY KEEP_PARAMS UTIL_CLAMP_MIN UTIL_CLAMP_MAX"
)
MEMORY_POLICY_MODES = _prefixed("MPOL_", "BIND DEFAULT INTERLEAVE LOCAL PREFERRED PREFERRED_MANY WEIGHTED_INTERLEAVE")
SECCOMP_ACTIONS = _prefixed("SCMP_ACT_", "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP")
SECCOMP_OPERATORS = _prefixed("SCMP_CMP_", "EQ GE GT LE LT MASKED_EQ NE")
SECCOMP_ARCHITECTURES = _prefixed(
    "SCMP_ARCH_",
    "AARCH64 ARM LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC PPC64 "
    "PPC64LE RISCV64 S390 S390X SH SHEB X32 X86 X86_64",
)
SECCOMP_FLAGS = _prefixed("SECCOMP_FILTER_FLAG_", "LOG SPEC_ALLOW TSYNC WAIT_KILLABLE_RECV")

MAX_NODE = 1023  # of the kernel's largest configuration
MAX_CPU = 65536  # the largest CPU or node number taken; as in runc, against absurd masks


def cpu_list(text: str) -> tuple[int, ...]:
    """The sorted members of a list like "0-3,7"; ValueError says what is wrong with it."""
    members: set[int] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        first, dash, last = part.partition("-")
        low = _cpu(first, part)
        high = _cpu(last, part) if dash else low
        if low > high:
            raise ValueError(f'"{part}" ends before it begins')
        members.update(range(low, high + 1))
    if not members:
        raise ValueError("no members")
    return tuple(sorted(members))


def _cpu(digits: str, part: str) -> int:
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise ValueError(f'"{part[:40]}" is not a number or a range')
    number = int(digits)
    if number > MAX_CPU:
        raise ValueError(f"{number} is above {MAX_CPU}")
    return number


def sysctl_path(key: str) -> str:
    """The file of a sysctl below /proc/sys: "net/ipv4/ip_forward"; ValueError for what is no name of one.

    The first separator decides, as in sysctl(8): with "." first, dots separate and a slash stands for a dot in a name.
    """
    dot, slash = key.find("."), key.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        key = key.translate({ord("."): "/", ord("/"): "."})
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError("not the name of a sysctl")
    return key


def rooted(path: str) -> str:
    """``path`` taken from "/", cleaned lexically: no "..", no doubled or trailing slash."""
    return posixpath.normpath("/" + path.lstrip("/"))


def huge_page_kib(name: str) -> int | None:
    """The size in KiB of a control file's "2MB"; None for what the kernel would write otherwise, such as "2048KB"."""
    number, unit = int(name[:-2]), name[-2:]
    if number % 1024 == 0 and unit != "GB":
        return None
    return number * {"KB": 1, "MB": 1024, "GB": 1024**2}[unit]
