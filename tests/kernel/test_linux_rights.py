"""Capabilities, seccomp, scheduling."""

from __future__ import annotations

import errno
import os
import signal
import struct

import pytest

from shimd.linux import caps, sched, seccomp
from shimd.linux.process import clone3, set_keepcaps, set_no_new_privs
from tests.kernel.child import become, run_in_child

ALLOW = struct.pack("=HBBI", 0x06, 0, 0, seccomp.SECCOMP_RET_ALLOW)
KILL = struct.pack("=HBBI", 0x06, 0, 0, seccomp.SECCOMP_RET_KILL_PROCESS)


def test_capability_sets() -> None:
    one = 1 << caps.NUMBERS["CAP_CHOWN"]

    def check() -> None:
        before = caps.capget()
        assert before.effective == before.permitted
        set_keepcaps(1)
        become(1000)
        assert caps.capget().effective == 0
        caps.capset(caps.CapSets(effective=one, permitted=one, inheritable=one))
        assert caps.capget() == caps.CapSets(one, one, one)
        caps.ambient_raise(caps.NUMBERS["CAP_CHOWN"])
        assert caps.ambient() == one
        caps.ambient_clear()
        assert caps.ambient() == 0
        with pytest.raises(PermissionError):
            caps.capset(before)
        with pytest.raises(PermissionError):
            caps.ambient_raise(caps.CAP_SYS_ADMIN)

    run_in_child(check)


def test_high_capabilities_use_the_second_word() -> None:
    def check() -> None:
        mask = 1 << caps.NUMBERS["CAP_BPF"] | 1
        caps.capset(caps.CapSets(mask, mask, mask))
        assert caps.capget() == (mask, mask, mask)

    run_in_child(check)


def test_bounding_set() -> None:
    keep = 1 << caps.CAP_SYS_ADMIN | 1 << caps.NUMBERS["CAP_CHECKPOINT_RESTORE"] | 1 << 63

    def check() -> None:
        caps.drop_bounding(keep)
        assert caps.bounding() == keep & ~(1 << 63)
        caps.capset(caps.CapSets(0, 0, 0))
        caps.drop_bounding(keep)  # nothing to drop: no right needed
        with pytest.raises(PermissionError):
            caps.drop_bounding(0)

    run_in_child(check)


def test_names_and_the_last_capability() -> None:
    assert caps.NUMBERS["CAP_SYS_ADMIN"] == caps.CAP_SYS_ADMIN
    assert (caps.NAMES[caps.CAP_SETPCAP], caps.NAMES[caps.CAP_SYS_RESOURCE]) == ("CAP_SETPCAP", "CAP_SYS_RESOURCE")
    assert (caps.NAMES[caps.CAP_MKNOD], caps.NAMES[caps.CAP_DAC_OVERRIDE]) == ("CAP_MKNOD", "CAP_DAC_OVERRIDE")
    assert caps.last_cap() >= caps.NUMBERS["CAP_CHECKPOINT_RESTORE"]
    assert caps.capget(os.getpid()) == caps.capget()


def test_capget_of_a_missing_process() -> None:
    with pytest.raises(OSError, match="No such process"):
        caps.capget(2**22)


def test_filter_is_loaded_and_obeyed() -> None:
    pid, pidfd = clone3(0)
    if pid == 0:
        set_no_new_privs()
        seccomp.load_filter(ALLOW, 0)
        seccomp.load_filter(KILL, seccomp.SECCOMP_FILTER_FLAG_LOG)
        os._exit(1)
    os.close(pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSYS


def test_bad_filters_are_refused() -> None:
    for program in (b"", b"\xff" * 8):
        with pytest.raises(OSError, match="Invalid argument"):
            seccomp.load_filter(program, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        seccomp.load_filter(ALLOW, 1 << 30)


def test_a_notify_filter_gives_a_descriptor() -> None:
    def check() -> None:
        set_no_new_privs()
        fd = seccomp.load_filter(ALLOW, seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER)
        assert "seccomp" in os.readlink(f"/proc/self/fd/{fd}")

    run_in_child(check)


def test_what_the_kernel_supports() -> None:
    assert seccomp.action_supported(seccomp.SECCOMP_RET_ALLOW)
    assert seccomp.action_supported(seccomp.SECCOMP_RET_KILL_PROCESS)
    assert not seccomp.action_supported(0x12340000)
    assert seccomp.flag_supported(seccomp.SECCOMP_FILTER_FLAG_LOG)
    assert not seccomp.flag_supported(1 << 20)


def test_scheduling() -> None:
    def check() -> None:
        sched.sched_setattr(0, policy=sched.SCHED_BATCH, nice=7)
        assert sched.sched_getattr(0) == (sched.SCHED_BATCH, 7, 0)
        with pytest.raises(OSError, match="Invalid argument") as caught:
            sched.sched_setattr(0, policy=99)
        assert caught.value.errno == errno.EINVAL
        sched.ioprio_set(0, io_class=sched.IOPRIO_CLASS_BE, data=6)
        assert sched.ioprio_get(0) == (sched.IOPRIO_CLASS_BE, 6)
        with pytest.raises(OSError, match="Invalid argument"):
            sched.ioprio_set(0, io_class=7, data=0)

    run_in_child(check)


def test_affinity_is_widened() -> None:
    before = os.sched_getaffinity(0)

    def check() -> None:
        os.sched_setaffinity(0, {min(before)})
        sched.set_affinity_all()
        assert os.sched_getaffinity(0) >= before

    run_in_child(check)
