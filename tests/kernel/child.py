"""Run a piece of a test in a child with its own namespaces, as init runs: cloned, never executing anything."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable

from shimd.linux.mount import MS_PRIVATE, MS_REC, mount
from shimd.linux.process import CLONE_NEWNS, clone3

SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}

_libc = ctypes.PyDLL(None, use_errno=True)


def become(uid: int) -> None:
    """setresuid(2) without glibc, which first takes a lock and looks for other threads: after a bare clone3 it believes
    that the launcher's are here, and one of those may have been ending with the lock held.
    """
    number = SYS_SETRESUID[os.uname().machine]
    if _libc.syscall(number, uid, uid, uid) != 0:
        raise OSError(ctypes.get_errno(), "setresuid")


def run_in_child(function: Callable[[], None], flags: int = 0) -> None:
    """Fails with the child's traceback. With CLONE_NEWNS its mounts are private, and end with it."""
    read_end, write_end = os.pipe()
    pid, pidfd = clone3(flags)
    if pid == 0:
        os._exit(_child(function, flags, write_end))
    os.close(write_end)
    os.close(pidfd)
    with os.fdopen(read_end) as report:
        text = report.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, text or f"the child ended with wait status {status:#x}"


def _child(function: Callable[[], None], flags: int, report: int) -> int:
    try:
        if flags & CLONE_NEWNS:
            mount(None, "/", None, MS_PRIVATE | MS_REC)
        function()
    except BaseException:  # noqa: BLE001 (whatever it is belongs into the report)
        os.write(report, traceback.format_exc().encode()[-4000:])
        return 1
    return 0
