"""Many lives of containers leave nothing in the kernel: no cgroup, no BPF program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.daemon.boxes import Box, MakeBox
from tests.lab.kernel_objects import bpf_programs, cgroups, settled
from tests.support.requires import requires
from tests.support.specs import runc_default

pytestmark = [pytest.mark.lab, requires("cgroup-mode:v2")]

CYCLES = 100


def limits() -> dict[str, Any]:
    spec = runc_default("sleep", "1000")
    memory = {"limit": 64 << 20, "swap": 64 << 20}
    spec["linux"]["resources"] |= {"memory": memory, "pids": {"limit": 10}, "cpu": {"shares": 512, "quota": 50000}}
    spec["linux"]["resources"]["devices"].append({"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"})
    return spec


@pytest.mark.timeout(600)
def test_a_hundred_containers_leave_nothing(box: MakeBox, capsys: pytest.CaptureFixture[str]) -> None:
    b = box(spec=limits())
    b.make()  # the first one may leave the parents of its cgroup
    _end(b)
    none: set[int] = set()
    before = cgroups(), settled(bpf_programs, none)
    for number in range(CYCLES):
        b.make()
        if number % 2:
            b.start()
        assert bpf_programs() > before[1]
        _end(b)
    assert settled(_everything, before) == before
    with capsys.disabled():
        dying = Path("/sys/fs/cgroup/cgroup.stat").read_text().split()[-1]
        print(f"\nafter {CYCLES} containers: {len(before[0])} cgroups, {dying} dying, {len(before[1])} BPF programs")


def _everything() -> tuple[set[str], set[int]]:
    return cgroups(), bpf_programs()


def _end(b: Box) -> None:
    b.kill()
    b.wait()
    b.delete()
