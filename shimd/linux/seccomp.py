"""seccomp(2): load a filter, ask what the kernel knows."""

from __future__ import annotations

import errno
import struct

from shimd.linux._libc import NR, address, buffer, syscall

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2

SECCOMP_FILTER_FLAG_TSYNC = 1 << 0
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 1 << 4
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_KILL_THREAD = 0x00000000
SECCOMP_RET_TRAP = 0x00030000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_TRACE = 0x7FF00000
SECCOMP_RET_LOG = 0x7FFC0000
SECCOMP_RET_ALLOW = 0x7FFF0000

_INSTRUCTION = 8
_FPROG = struct.Struct("=HxxxxxxQ")


def load_filter(program: bytes, flags: int) -> int:
    """``program`` is an array of struct sock_filter. The notify descriptor with NEW_LISTENER, else 0. EACCES: neither
    NNP nor SYS_ADMIN.
    """
    instructions = buffer(program)
    header = _FPROG.pack(len(program) // _INSTRUCTION, address(instructions))
    return syscall(NR["seccomp"], SECCOMP_SET_MODE_FILTER, flags, header)


def action_supported(action: int) -> bool:
    """``action`` is a SECCOMP_RET_* value."""
    try:
        syscall(NR["seccomp"], SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", action))
    except OSError:
        return False
    return True


def flag_supported(flag: int) -> bool:
    """Flags are checked before the program is read: EFAULT on a null program means that the flag is known."""
    if flag == SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        flag |= SECCOMP_FILTER_FLAG_NEW_LISTENER  # only valid together
    try:
        syscall(NR["seccomp"], SECCOMP_SET_MODE_FILTER, flag, None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True
