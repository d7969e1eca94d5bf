"""Many lives of containers leave nothing in the kernel: no cgroup, no BPF program."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.boxes import Box, MakeBox
from tests.support.requires import requires
from tests.support.specs import runc_default

pytestmark = [pytest.mark.lab, requires("cgroup-mode:v2")]

CYCLES = 100
BPF_PROG_GET_NEXT_ID = 11
SYS_BPF = {"x86_64": 321, "aarch64": 280}


def bpf_programs() -> set[int]:
    return set(_bpf_programs())


def _bpf_programs() -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    number = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=II", number, 0), 128)
        if libc.syscall(SYS_BPF[os.uname().machine], BPF_PROG_GET_NEXT_ID, attributes, 128) != 0:
            assert ctypes.get_errno() == 2, os.strerror(ctypes.get_errno())
            return
        number = struct.unpack_from("=4xI", attributes)[0]
        yield number


def cgroups() -> set[str]:
    return {folder for folder, _, _ in os.walk("/sys/fs/cgroup")}


def limits() -> dict[str, Any]:
    spec = runc_default("sleep", "1000")
    memory = {"limit": 64 << 20, "swap": 64 << 20}
    spec["linux"]["resources"] |= {"memory": memory, "pids": {"limit": 10}, "cpu": {"shares": 512, "quota": 50000}}
    spec["linux"]["resources"]["devices"].append({"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"})
    return spec


def test_a_hundred_containers_leave_nothing(box: MakeBox, capsys: pytest.CaptureFixture[str]) -> None:
    b = box(spec=limits())
    b.make()  # the first one may leave the parents of its cgroup
    _end(b)
    before = cgroups(), bpf_programs()
    for number in range(CYCLES):
        b.make()
        if number % 2:
            b.start()
        assert len(bpf_programs() - before[1]) == 1
        _end(b)
    assert (cgroups(), bpf_programs()) == before
    with capsys.disabled():
        dying = Path("/sys/fs/cgroup/cgroup.stat").read_text().split()[-1]
        print(f"\nafter {CYCLES} containers: {len(before[0])} cgroups, {dying} dying, {len(before[1])} BPF programs")


def _end(b: Box) -> None:
    b.kill()
    b.wait()
    b.delete()
