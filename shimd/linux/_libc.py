"""System calls through glibc's ``syscall(2)``, as OSError or a result.

Every argument is one register wide: an int (negative ones too), ``bytes``, a ctypes buffer, or None for a null
pointer. ``str`` is no argument: paths go through ``encode``. The GIL stays held: a system call of a microsecond must
not cost a wait of up to the interpreter's switch interval in a daemon with busy threads. Calls that can take long use
``blocking_syscall``.
"""

from __future__ import annotations

import os

from shimd.linux import cdata

Argument = int | bytes | cdata.Memory | None

MACHINE = os.uname().machine

_NUMBERS_X86_64 = {
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "setns": 308,
    "unshare": 272,
    "prctl": 157,
    "capget": 125,
    "capset": 126,
    "personality": 135,
    "seccomp": 317,
    "bpf": 321,
    "keyctl": 250,
    "execveat": 322,
    "prlimit64": 302,
    "ioprio_set": 251,
    "ioprio_get": 252,
    "sched_setattr": 314,
    "sched_getattr": 315,
    "sched_setaffinity": 203,
    "set_mempolicy": 238,
    "statx": 332,
    "fstatfs": 138,
    "sethostname": 170,
    "setdomainname": 171,
    "tee": 276,
    "getcwd": 79,
    "clone": 56,
    "mmap": 9,
    "mprotect": 10,
    "set_tid_address": 218,
    "signalfd4": 289,
    "rt_sigaction": 13,
    "inotify_init1": 294,
    "inotify_add_watch": 254,
    "inotify_rm_watch": 255,
}

_NUMBERS_AARCH64 = {
    "mount": 40,
    "umount2": 39,
    "pivot_root": 41,
    "setns": 268,
    "unshare": 97,
    "prctl": 167,
    "capget": 90,
    "capset": 91,
    "personality": 92,
    "seccomp": 277,
    "bpf": 280,
    "keyctl": 219,
    "execveat": 281,
    "prlimit64": 261,
    "ioprio_set": 30,
    "ioprio_get": 31,
    "sched_setattr": 274,
    "sched_getattr": 275,
    "sched_setaffinity": 122,
    "set_mempolicy": 237,
    "statx": 291,
    "fstatfs": 44,
    "sethostname": 161,
    "setdomainname": 162,
    "tee": 77,
    "getcwd": 17,
    "clone": 220,
    "mmap": 222,
    "mprotect": 226,
    "set_tid_address": 96,
    "signalfd4": 74,
    "rt_sigaction": 134,
    "inotify_init1": 26,
    "inotify_add_watch": 27,
    "inotify_rm_watch": 28,
}

# From 424 on, all architectures share their numbers.
_NUMBERS_COMMON = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}

NR = {**({"x86_64": _NUMBERS_X86_64, "aarch64": _NUMBERS_AARCH64}.get(MACHINE, {})), **_NUMBERS_COMMON}


_at = cdata.symbol("syscall")

# For each number of arguments: converting six where one is used would cost more than most calls.
_held = tuple(cdata.foreign(_at, 1 + count, held=True) for count in range(7))
_released = cdata.foreign(_at, 1 + 6, held=False)
_NO_ARGUMENTS = (0,) * 6


def _error(path: str | bytes | None) -> OSError:
    number = cdata.errno()
    return OSError(number, os.strerror(number), path)


def syscall(number: int, *args: Argument, path: str | bytes | None = None) -> int:
    """Raises OSError with ``path`` as its filename."""
    result = _held[len(args)](number, *args)
    if result == -1:
        raise _error(path)
    return result


def blocking_syscall(number: int, *args: Argument, path: str | bytes | None = None) -> int:
    """``syscall`` with the GIL released, for calls that may wait for a disk or a network file system."""
    result = _released(number, *args, *_NO_ARGUMENTS[len(args) :])
    if result == -1:
        raise _error(path)
    return result


def encode(text: str | bytes) -> bytes:
    """A C string; ValueError on an embedded NUL, where the kernel would silently see a shorter string."""
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data


def buffer(data: bytes) -> cdata.Memory:
    """A writable buffer of exactly ``len(data)`` bytes."""
    memory = cdata.memory(len(data))
    memory.raw = data
    return memory


def address(memory: cdata.Memory) -> int:
    """For pointers inside of structures; the caller keeps ``memory`` alive across the call."""
    return cdata.address(memory)
