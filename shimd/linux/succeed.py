"""clone3(2) whose parent ends at the same moment, so that the child takes over its memory as it is.

A fork shares all pages and copies each one that is written to; Python writes to every object that it looks at, so a
forked interpreter copies hundreds of pages, one fault each, before it has done anything. With CLONE_VM nothing is
copied: the child goes on in the parent's memory, on the parent's stack. So the parent may never touch memory again.
It cannot even return from a function: between the system call and its end there may be no instruction that uses the
stack. No library has such a function, hence these 22 bytes.

Both processes exist for a moment, with one memory, and as long the kernel refuses the child to join a user or time
namespace. The C library notices nothing: the thread is the same to it, but for the number,
which it hardly uses; the kernel is told not to clear that one when the parent ends.
"""

from __future__ import annotations

import errno
import os
import struct

from shimd.linux import cdata
from shimd.linux._libc import MACHINE, NR, buffer, syscall
from shimd.linux.process import CLONE_INTO_CGROUP, CLONE_PARENT, CLONE_VM, pidfd_open

CLONE_PARENT_SETTID = 0x00100000

PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4
MAP_PRIVATE = 0x02
MAP_ANONYMOUS = 0x20

# long f(struct clone_args *, size_t): 0 in the child, a negative errno, or no return.
_CODE = {
    "x86_64": bytes.fromhex(
        "b8b3010000"  # mov   eax, 435    clone3
        "0f05"  #       syscall
        "4885c0"  #     test  rax, rax
        "7f01"  #       jg    +1          the parent
        "c3"  #         ret
        "31ff"  #       xor   edi, edi
        "b8e7000000"  # mov   eax, 231    exit_group
        "0f05"  #       syscall
    ),
}

_CLONE_ARGS = struct.Struct("=11Q")


class Successor:
    """The code, mapped; made once, before the processes that use it are forked. Raises OSError: ENOSYS on other
    machines, EACCES where a security module forbids executable memory.
    """

    def __init__(self) -> None:
        code = _CODE.get(MACHINE)
        if code is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        page = syscall(NR["mmap"], None, len(code), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        cdata.memory(len(code), page).raw = code
        syscall(NR["mprotect"], page, len(code), PROT_READ | PROT_EXEC)
        self._function = cdata.foreign(page, 2, held=True)

    def clone(self, flags: int, *, cgroup_fd: int = -1) -> tuple[int, int]:
        """Returns in the child only: its pid as its parent's parent sees it, which is its parent too, and a pidfd of
        the caller. That ends with status 0; after an OSError it goes on.
        """
        syscall(NR["set_tid_address"], None)
        predecessor = pidfd_open(os.getpid())
        pid = cdata.Number(-1)
        flags |= CLONE_VM | CLONE_PARENT | CLONE_PARENT_SETTID | (CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
        fields = (flags, 0, 0, cdata.address(pid), 0, 0, 0, 0, 0, 0, max(cgroup_fd, 0))
        result = self._function(buffer(_CLONE_ARGS.pack(*fields)), _CLONE_ARGS.size)
        if result < 0:
            os.close(predecessor)
            raise OSError(-result, os.strerror(-result))
        return pid.value, predecessor
