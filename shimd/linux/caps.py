"""Capability sets as bit masks, capabilities(7)."""

from __future__ import annotations

import errno
import struct

from shimd.linux._libc import NR, buffer, syscall
from shimd.linux.process import prctl
from shimd.records import Record

NAMES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
]
NUMBERS = {name: number for number, name in enumerate(NAMES)}

CAP_DAC_OVERRIDE = 1
CAP_SETPCAP = 8
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_MKNOD = 27

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_AMBIENT_IS_SET = 1
_AMBIENT_RAISE = 2
_AMBIENT_CLEAR_ALL = 4

_HEADER = struct.Struct("=Ii")
_DATA = struct.Struct("=6I")
_VERSION_3 = 0x20080522


class CapSets(Record):
    """Masks: bit N is capability number N."""

    effective: int
    permitted: int
    inheritable: int


def last_cap() -> int:
    """The highest capability number of this kernel; needs /proc."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def capget(pid: int = 0) -> CapSets:
    data = buffer(bytes(_DATA.size))
    syscall(NR["capget"], buffer(_HEADER.pack(_VERSION_3, pid)), data)
    e0, p0, i0, e1, p1, i1 = _DATA.unpack(data.raw)
    return CapSets(e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32)


def capset(sets: CapSets) -> None:
    """Of the calling thread. EPERM: a set asks for more than it may have."""
    low = [mask & 0xFFFFFFFF for mask in sets]
    high = [mask >> 32 for mask in sets]
    syscall(NR["capset"], buffer(_HEADER.pack(_VERSION_3, 0)), _DATA.pack(*low, *high))


def bounding() -> int:
    """The bounding set as a mask."""
    mask = 0
    for number in range(64):
        try:
            mask |= prctl(_PR_CAPBSET_READ, number) << number
        except OSError:  # EINVAL: past the last capability
            break
    return mask


def drop_bounding(keep: int) -> None:
    """Drop every capability that is not in ``keep``, also those that this code has no name for."""
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            syscall(NR["prctl"], _PR_CAPBSET_DROP, number)  # prctl() passes on three more, forty times
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last capability
                return
            if error.errno == errno.EPERM and bounding() & ~keep == 0:  # no right to, and nothing to drop
                return
            raise


def ambient_clear() -> None:
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)


def ambient_raise(number: int) -> None:
    """EPERM unless permitted and inheritable hold it."""
    prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def ambient() -> int:
    """The ambient set as a mask."""
    mask = 0
    for number in range(64):
        try:
            mask |= prctl(_PR_CAP_AMBIENT, _AMBIENT_IS_SET, number) << number
        except OSError:  # EINVAL: past the last capability
            break
    return mask
