"""What one run of the tests calls its own: a tag in names, a mark that processes inherit, mounts of its own, a cache.

Facts: the timer slack of a process is inherited over fork and execve, nothing in a container's set-up changes it, and
``/proc/PID/timerslack_ns`` shows it. A run sets an unusual value, so every process that came from it can be told from
those of other programs (or of another run of the tests) on the same machine, whoever its parent is by now.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_TIMERSLACK = 29
CLONE_NEWNS = 0x00020000
RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
SIGACTION_SIZE = 32
GLIBC_SIGNALS = (32, 33)
MS_REC, MS_SLAVE = 0x4000, 0x80000

TAG = f"shimd-test-{os.getpid()}"
"""Part of container ids and cgroup paths that tests choose, so that what is left behind names its run."""

SLACK_NS = 50_000 + 1 + os.getpid() % 40_000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, attempt: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), attempt)


def take_signals_back() -> None:
    """Undo what make leaves to its children: glibc's posix_spawn ignores the two signals of its threads for them, and a
    program of ours or of a peer would inherit that. Neither glibc nor Python lets them be set.
    """
    for number in GLIBC_SIGNALS:
        default = ctypes.create_string_buffer(SIGACTION_SIZE)
        _check(_libc.syscall(RT_SIGACTION[os.uname().machine], number, default, None, 8), "rt_sigaction")


def mark_processes() -> None:
    """Mark this process, and with it all that it starts from now on."""
    _check(_libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(SLACK_NS), 0, 0, 0), "prctl(PR_SET_TIMERSLACK)")


def private_mounts() -> None:
    """Give this process mounts of its own: a test run that is killed leaves none, and others' mounts do not disturb
    it.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "make / a slave mount")


def cache_dir() -> Path:
    """Where expensive test data stays between runs: $SHIMD_TEST_CACHE, else /var/cache/shimd-test (root) or
    ~/.cache/shimd-test.
    """
    default = "/var/cache/shimd-test" if os.geteuid() == 0 else os.path.expanduser("~/.cache/shimd-test")
    path = Path(os.environ.get("SHIMD_TEST_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold ``name``.lock of the cache: only one test run at a time builds a thing."""
    with open(cache_dir() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Presence:
    """A shared lock held by each run that makes containers; ``alone()`` tells whether this is the only one."""

    def __init__(self) -> None:
        self._file = open(cache_dir() / "runs.lock", "w")  # noqa: SIM115 (held as long as the run)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def alone(self) -> bool:
        """Asks proc(5), since an attempt to lock out the others would drop the shared lock for a moment (flock(2))."""
        inode = f":{os.fstat(self._file.fileno()).st_ino}"
        with open("/proc/locks") as file:
            locks = [line.split() for line in file]
        return sum(fields[1] == "FLOCK" and fields[5].endswith(inode) for fields in locks) == 1

    def close(self) -> None:
        self._file.close()
