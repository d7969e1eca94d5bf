"""The compiled filters as the kernel takes them."""

from __future__ import annotations

import errno
import os

import pytest

from shimd.linux import process
from shimd.linux import seccomp as kernel
from shimd.plan.seccomp import compile_filter
from tests.support.plans import HOST, spec_of
from tests.support.requires import requires
from tests.support.specs import docker_default_seccomp, runc_default

UNUSED = 5000


def errno_of(program: bytes, flags: int, number: int) -> int:
    """What a child gets from a system call without arguments once the filter is loaded."""
    from shimd.linux._libc import syscall

    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            process.set_no_new_privs()
            kernel.load_filter(program, flags)
            syscall(number)
            code = 0
        except OSError as e:
            code = e.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@requires("file:/usr/share/containers/seccomp.json")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers here are x86_64's")
@pytest.mark.parametrize(
    ("number", "expected"),
    [(39, 0), (246, errno.EPERM), (UNUSED, errno.ENOSYS)],
    ids=["getpid", "kexec_load", "unused"],
)
def test_dockers_profile(number: int, expected: int) -> None:
    document = runc_default()
    document["linux"]["seccomp"] = {**docker_default_seccomp(), "defaultErrnoRet": errno.EPERM}
    profile = spec_of(document).linux.seccomp
    assert profile is not None
    compiled = compile_filter(profile, HOST)
    assert errno_of(compiled.program, compiled.flags, number) == expected
