"""Scheduling: policy, I/O priority, CPU affinity."""

from __future__ import annotations

import struct

from shimd.linux._libc import NR, buffer, syscall

SCHED_OTHER = 0
SCHED_FIFO = 1
SCHED_RR = 2
SCHED_BATCH = 3
SCHED_IDLE = 5
SCHED_DEADLINE = 6

SCHED_FLAG_RESET_ON_FORK = 0x01
SCHED_FLAG_RECLAIM = 0x02
SCHED_FLAG_DL_OVERRUN = 0x04
SCHED_FLAG_KEEP_POLICY = 0x08
SCHED_FLAG_KEEP_PARAMS = 0x10
SCHED_FLAG_UTIL_CLAMP_MIN = 0x20
SCHED_FLAG_UTIL_CLAMP_MAX = 0x40

IOPRIO_CLASS_RT = 1
IOPRIO_CLASS_BE = 2
IOPRIO_CLASS_IDLE = 3

_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_ALL_CPUS = b"\xff" * 1024


def sched_setattr(
    pid: int,
    *,
    policy: int,
    nice: int = 0,
    priority: int = 0,
    flags: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> None:
    """``pid`` 0 is the caller; times in nanoseconds."""
    attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, runtime, deadline, period)
    syscall(NR["sched_setattr"], pid, buffer(attr), 0)


def sched_getattr(pid: int) -> tuple[int, int, int]:
    """(policy, nice, priority)."""
    attr = buffer(bytes(_SCHED_ATTR.size))
    syscall(NR["sched_getattr"], pid, attr, _SCHED_ATTR.size, 0)
    _, policy, _, nice, priority, *_ = _SCHED_ATTR.unpack(attr.raw)
    return policy, nice, priority


def ioprio_set(pid: int, *, io_class: int, data: int) -> None:
    syscall(NR["ioprio_set"], _IOPRIO_WHO_PROCESS, pid, io_class << _IOPRIO_CLASS_SHIFT | data)


def ioprio_get(pid: int) -> tuple[int, int]:
    """(class, data)."""
    value = syscall(NR["ioprio_get"], _IOPRIO_WHO_PROCESS, pid)
    return value >> _IOPRIO_CLASS_SHIFT, value & (1 << _IOPRIO_CLASS_SHIFT) - 1


def set_affinity_all(pid: int = 0) -> None:
    """Every CPU that the cpuset allows: the kernel cuts the mask down."""
    syscall(NR["sched_setaffinity"], pid, len(_ALL_CPUS), _ALL_CPUS)
