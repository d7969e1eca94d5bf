"""Limits and figures of the main controllers of cgroup v2, which only the virtual machine has."""

from __future__ import annotations

import os
import signal

import pytest

from shimd.errors import RuntimeFailure
from shimd.oci.model import BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice
from tests.kernel.cgroup_member import Member, eat, member, way_into
from tests.kernel.cgroup_world import MEBIBYTE, ROOT, TOP, World, on_v2, text
from tests.support import wait

pytestmark = pytest.mark.lab


LOOP = (7, 1)  # /dev/loop1: io.max takes a device that exists, in use or not
READ_BACK: dict[str, tuple[Resources, dict[str, str]]] = {
    "memory": (
        Resources(memory=Memory(limit=64 * MEBIBYTE, swap=96 * MEBIBYTE, reservation=32 * MEBIBYTE)),
        {
            "memory.max": str(64 * MEBIBYTE),
            "memory.swap.max": str(32 * MEBIBYTE),
            "memory.low": str(32 * MEBIBYTE),
        },
    ),
    "no swap": (Resources(memory=Memory(limit=MEBIBYTE * 64, swap=MEBIBYTE * 64)), {"memory.swap.max": "0"}),
    "memory without end": (Resources(memory=Memory(limit=-1)), {"memory.max": "max", "memory.swap.max": "max"}),
    "swap without end": (Resources(memory=Memory(limit=MEBIBYTE * 64, swap=-1)), {"memory.swap.max": "max"}),
    **{
        f"{shares} shares": (Resources(cpu=Cpu(shares=shares)), {"cpu.weight": str(weight)})
        for shares, weight in ((2, 1), (100, 17), (512, 59), (1024, 100), (2048, 174), (262144, 10000))
    },
    "quota": (Resources(cpu=Cpu(quota=50000)), {"cpu.max": "50000 100000"}),
    "quota and period": (Resources(cpu=Cpu(quota=50000, period=20000)), {"cpu.max": "50000 20000"}),
    "period": (Resources(cpu=Cpu(period=20000)), {"cpu.max": "max 20000"}),
    "quota without end": (Resources(cpu=Cpu(quota=-1)), {"cpu.max": "max 100000"}),
    "burst": (
        Resources(cpu=Cpu(quota=50000, period=100000, burst=40000)),
        {"cpu.max": "50000 100000", "cpu.max.burst": "40000"},
    ),
    "idle": (Resources(cpu=Cpu(idle=1, shares=2048)), {"cpu.idle": "1", "cpu.weight": "0"}),
    "not idle": (Resources(cpu=Cpu(idle=0, shares=2048)), {"cpu.idle": "0", "cpu.weight": "174"}),
    "pids": (Resources(pids=Pids(17)), {"pids.max": "17"}),
    "no pids": (Resources(pids=Pids(0)), {"pids.max": "1"}),
    "pids without end": (Resources(pids=Pids(-1)), {"pids.max": "max"}),
    "throttles": (
        Resources(
            block_io=BlockIo(
                throttle_read_bps_device=(ThrottleDevice(*LOOP, 1 << 20),),
                throttle_write_bps_device=(ThrottleDevice(*LOOP, 2 << 20),),
                throttle_read_iops_device=(ThrottleDevice(*LOOP, 30),),
                throttle_write_iops_device=(ThrottleDevice(*LOOP, 0),),
            )
        ),
        {"io.max": "7:1 rbps=1048576 wbps=2097152 riops=30 wiops=max"},
    ),
    "unified": (
        Resources(
            unified={
                "memory.min": "4096",
                "memory.high": str(MEBIBYTE),
                "memory.oom.group": "1",
                "cpu.weight": "77",
                "cpu.max": "3000 20000",
                "io.max": "7:1 rbps=10\n7:1 wbps=20\n",
            }
        ),
        {
            "memory.min": "4096",
            "memory.high": str(MEBIBYTE),
            "memory.oom.group": "1",
            "cpu.weight": "77",
            "cpu.max": "3000 20000",
            "io.max": "7:1 rbps=10 wbps=20 riops=max wiops=max",
        },
    ),
    "unified has the last word": (
        Resources(
            memory=Memory(limit=64 * MEBIBYTE),
            cpu=Cpu(shares=2048, quota=50000),
            pids=Pids(17),
            unified={"memory.max": str(32 * MEBIBYTE), "cpu.weight": "5", "cpu.max": "10000", "pids.max": "9"},
        ),
        {"memory.max": str(32 * MEBIBYTE), "cpu.weight": "5", "cpu.max": "10000 100000", "pids.max": "9"},
    ),
}


@pytest.mark.parametrize("case", READ_BACK)
def test_read_back(case: str) -> None:
    check_read_back(*READ_BACK[case])


@on_v2
def check_read_back(world: World, resources: Resources, files: dict[str, str]) -> None:
    cgroup = world.manager("x/a")
    cgroup.create(resources)
    assert {file: text(cgroup, file) for file in files} == files
    cgroup.destroy()
    os.rmdir(f"{ROOT}{TOP}/x")


@on_v2
def test_weights_of_block_devices_need_a_scheduler_that_has_them(world: World) -> None:
    """Nor has this kernel io.weight or io.bfq.weight: their conversion has tests without a kernel alone."""
    with pytest.raises(RuntimeFailure, match=r'failed to write "4950": open .*/io\.weight: no such file'):
        world.create(block_io=BlockIo(weight=500))


@on_v2
def test_refused_limit_names_the_file(world: World) -> None:
    throttle = BlockIo(throttle_read_bps_device=(ThrottleDevice(4000, 1, 10),))
    with pytest.raises(RuntimeFailure) as caught:
        world.create(block_io=throttle)
    file = f"{ROOT}{TOP}/a/io.max"
    assert str(caught.value) == f'failed to write "4000:1 rbps=10": write {file}: no such device'
    assert not os.path.exists(ROOT + TOP)


@on_v2
def test_update(world: World) -> None:
    current = Resources(memory=Memory(limit=64 * MEBIBYTE), cpu=Cpu(quota=50000, period=100000), pids=Pids(10))
    cgroup = world.manager()
    cgroup.create(current)
    current = cgroup.update(current, Resources(memory=Memory(limit=32 * MEBIBYTE), cpu=Cpu(quota=20000)))
    assert text(cgroup, "memory.max") == str(32 * MEBIBYTE)
    assert text(cgroup, "cpu.max") == "20000 100000"
    assert text(cgroup, "pids.max") == "10"
    throttle = BlockIo(throttle_read_bps_device=(ThrottleDevice(4000, 1, 10),))
    with pytest.raises(RuntimeFailure, match=r"io\.max"):
        cgroup.update(current, Resources(memory=Memory(limit=16 * MEBIBYTE), block_io=throttle))
    assert text(cgroup, "memory.max") == str(32 * MEBIBYTE)
    cgroup.update(current, Resources(cpu=Cpu(idle=1)))
    assert text(cgroup, "cpu.idle") == "1"
    cgroup.update(current, Resources(cpu=Cpu(idle=0, shares=1024)))
    assert text(cgroup, "cpu.weight") == "100"


@on_v2
def test_update_below_usage(world: World) -> None:
    current = Resources(memory=Memory(limit=64 * MEBIBYTE))
    cgroup = world.manager()
    cgroup.create(current)
    with member(way_into(cgroup), lambda: eat(20 * MEBIBYTE)):
        change = Resources(memory=Memory(limit=MEBIBYTE, check_before_update=True))
        with pytest.raises(RuntimeFailure, match=r"rejecting memory limit 1048576 < usage \d+"):
            cgroup.update(current, change)


@on_v2
def test_stats(world: World) -> None:
    cgroup = world.create(memory=Memory(limit=64 * MEBIBYTE), pids=Pids(10))
    with member(way_into(cgroup), lambda: eat(8 * MEBIBYTE)):
        found = cgroup.stats()
    assert found.memory.usage.usage > 8 * MEBIBYTE
    assert found.memory.usage.limit == 64 * MEBIBYTE
    assert found.memory.raw["anon"] > 8 * MEBIBYTE
    assert found.pids == (1, 10)


@on_v2
def test_oom_kills_are_counted_once_each(world: World) -> None:
    cgroup = world.create(memory=Memory(limit=16 * MEBIBYTE, swap=16 * MEBIBYTE))
    watch = cgroup.oom_watch()
    assert watch.consume() == 0
    for _ in range(2):
        victim = Member(way_into(cgroup), lambda: eat(64 * MEBIBYTE))
        kills = 0
        while not kills:  # the file tells of other events too: limits that were hit
            wait.readable(watch.fileno(), what="the OOM event")
            kills = watch.consume()
        assert kills == 1
        assert victim.wait_end() == -signal.SIGKILL
        victim.close()
        assert watch.consume() == 0
    assert cgroup.stats().memory.oom_kill == 2
    cgroup.destroy()
    assert watch.consume() == 0
    watch.close()


@on_v2
def test_parent_with_processes_is_explained(world: World) -> None:
    parent = world.create("p")
    with (
        member(way_into(parent)),
        pytest.raises(RuntimeFailure, match="with domain controllers -- it is in an invalid state"),
    ):
        world.create("p/c", memory=Memory(limit=MEBIBYTE))
