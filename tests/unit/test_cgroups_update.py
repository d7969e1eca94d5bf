from __future__ import annotations

import pytest

from shimd.cgroups.update import check_memory, merge
from shimd.errors import RuntimeFailure
from shimd.oci.model import BlockIo, Cpu, DeviceRule, Memory, Pids, Resources, ThrottleDevice, WeightDevice

CURRENT = Resources(
    devices=(DeviceRule(allow=False),),
    memory=Memory(limit=100, swap=200, reservation=50),
    cpu=Cpu(shares=512, quota=50000, period=100000, burst=100, cpus="0", mems="0"),
    pids=Pids(10),
    block_io=BlockIo(weight=500, throttle_read_bps_device=(ThrottleDevice(8, 0, 1), ThrottleDevice(8, 16, 2))),
    unified={"memory.high": "1"},
)


def test_nothing_changes_but_what_is_never_kept() -> None:
    merged = merge(CURRENT, Resources())
    assert merged.memory == CURRENT.memory
    assert merged.block_io == CURRENT.block_io
    assert merged.devices == CURRENT.devices
    assert merged.cpu == Cpu(shares=512)
    assert merged.pids == Pids()
    assert merged.unified == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Memory(limit=300), Memory(300, 50, 200)),
        (Memory(swap=300), Memory(100, 50, 300)),
        (Memory(limit=-1), Memory(-1, 50, 0)),
        (Memory(limit=-1, swap=400), Memory(-1, 50, 400)),
        (Memory(reservation=0), Memory(100, 0, 200)),
        (Memory(limit=300, check_before_update=True), Memory(300, 50, 200, check_before_update=True)),
    ],
)
def test_memory(change: Memory, expected: Memory) -> None:
    assert merge(CURRENT, Resources(memory=change)).memory == expected


@pytest.mark.parametrize(
    ("change", "shares", "quota", "period"),
    [
        (Cpu(quota=70000), 512, 70000, 100000),
        (Cpu(period=20000), 512, 50000, 20000),
        (Cpu(quota=70000, period=20000), 512, 70000, 20000),
        (Cpu(quota=-1), 512, -1, 100000),
        (Cpu(shares=1024), 1024, None, None),
        (Cpu(idle=1), 0, None, None),
        (Cpu(idle=0, shares=2), 2, None, None),
    ],
)
def test_cpu(change: Cpu, shares: int, quota: int | None, period: int | None) -> None:
    merged = merge(CURRENT, Resources(cpu=change)).cpu
    assert (merged.shares, merged.quota, merged.period) == (shares, quota, period)
    assert (merged.burst, merged.cpus, merged.mems, merged.idle) == (
        change.burst,
        change.cpus,
        change.mems,
        change.idle,
    )


def test_block_io_per_device() -> None:
    change = BlockIo(
        weight_device=(WeightDevice(8, 0, weight=100),),
        throttle_read_bps_device=(ThrottleDevice(8, 16, 9), ThrottleDevice(8, 32, 3)),
    )
    merged = merge(CURRENT, Resources(block_io=change)).block_io
    assert merged.weight == 500
    assert merged.throttle_read_bps_device == (
        ThrottleDevice(8, 0, 1),
        ThrottleDevice(8, 16, 9),
        ThrottleDevice(8, 32, 3),
    )
    again = merge(
        CURRENT._replace(block_io=merged),
        Resources(block_io=BlockIo(weight_device=(WeightDevice(8, 0, leaf_weight=7),))),
    )
    assert again.block_io.weight_device == (WeightDevice(8, 0, 100, 7),)


@pytest.mark.parametrize(
    ("wanted", "usage", "total", "text"),
    [
        (Memory(limit=100), 101, 101, "rejecting memory limit 100 < usage 101"),
        (Memory(limit=-1, swap=100), 90, 101, r"rejecting memory\+swap limit 100 < usage 101"),
    ],
)
def test_check_refuses(wanted: Memory, usage: int, total: int, text: str) -> None:
    with pytest.raises(RuntimeFailure, match=text):
        check_memory(wanted, usage=usage, usage_with_swap=total)


@pytest.mark.parametrize("wanted", [Memory(), Memory(limit=-1, swap=-1), Memory(limit=100, swap=100), Memory(limit=0)])
def test_check_passes(wanted: Memory) -> None:
    check_memory(wanted, usage=100, usage_with_swap=100)
    check_memory(wanted, usage=None, usage_with_swap=None)
