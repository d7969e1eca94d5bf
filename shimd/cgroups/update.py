"""``update``: what becomes of the limits in force when some are changed. Pure."""

from __future__ import annotations

from shimd.errors import RuntimeFailure
from shimd.oci.model import BlockIo, Cpu, Memory, Resources, ThrottleDevice, WeightDevice


def merge(current: Resources, change: Resources) -> Resources:
    """The rules of `runc update`, on which engines rely: memory, shares, quota, period, weight and the like keep
    their value when absent; cpus, mems, pids, unified, burst and idle do not, so that they are only written when
    the change names them; throttles and device weights are replaced per device. Device rules, huge pages, network
    and RDMA limits are never changed.
    """
    return current._replace(
        memory=_memory(current.memory, change.memory),
        cpu=_cpu(current.cpu, change.cpu),
        pids=change.pids,
        block_io=_block_io(current.block_io, change.block_io),
        unified=change.unified,
    )


def check_memory(wanted: Memory, *, usage: int | None, usage_with_swap: int | None) -> None:
    """checkBeforeUpdate: refuse what would begin with an OOM kill. Raises RuntimeFailure."""
    if wanted.swap and wanted.swap > 0 and usage_with_swap is not None and wanted.swap < usage_with_swap:
        raise RuntimeFailure(f"rejecting memory+swap limit {wanted.swap} < usage {usage_with_swap}")
    if wanted.limit and wanted.limit > 0 and usage is not None and wanted.limit < usage:
        raise RuntimeFailure(f"rejecting memory limit {wanted.limit} < usage {usage}")


def _kept(current: int | None, change: int | None) -> int | None:
    return current if change is None else change


def _memory(current: Memory, change: Memory) -> Memory:
    # A new limit of -1 without a word on swap lifts that too: an old swap would be below the new memory limit.
    swap = 0 if change.limit == -1 and change.swap is None else _kept(current.swap, change.swap)
    return current._replace(
        limit=_kept(current.limit, change.limit),
        swap=swap,
        reservation=_kept(current.reservation, change.reservation),
        check_before_update=(
            current.check_before_update if change.check_before_update is None else change.check_before_update
        ),
    )


def _cpu(current: Cpu, change: Cpu) -> Cpu:
    shares = 0 if change.idle is not None and change.shares is None else _kept(current.shares, change.shares)
    return current._replace(
        shares=shares,
        # 0 is "not given" here; quota and period together are a pair, one alone keeps the other
        quota=change.quota or (current.quota if change.period else None),
        period=change.period or (current.period if change.quota else None),
        burst=change.burst,
        idle=change.idle,
        realtime_period=_kept(current.realtime_period, change.realtime_period),
        realtime_runtime=_kept(current.realtime_runtime, change.realtime_runtime),
        cpus=change.cpus,
        mems=change.mems,
    )


def _block_io(current: BlockIo, change: BlockIo) -> BlockIo:
    return BlockIo(
        weight=_kept(current.weight, change.weight),
        leaf_weight=_kept(current.leaf_weight, change.leaf_weight),
        weight_device=_weights(current.weight_device, change.weight_device),
        throttle_read_bps_device=_throttles(current.throttle_read_bps_device, change.throttle_read_bps_device),
        throttle_write_bps_device=_throttles(current.throttle_write_bps_device, change.throttle_write_bps_device),
        throttle_read_iops_device=_throttles(current.throttle_read_iops_device, change.throttle_read_iops_device),
        throttle_write_iops_device=_throttles(current.throttle_write_iops_device, change.throttle_write_iops_device),
    )


def _weights(current: tuple[WeightDevice, ...], change: tuple[WeightDevice, ...]) -> tuple[WeightDevice, ...]:
    devices = {(item.major, item.minor): item for item in current}
    for item in change:
        old = devices.get((item.major, item.minor), item)
        devices[item.major, item.minor] = old._replace(
            weight=_kept(old.weight, item.weight), leaf_weight=_kept(old.leaf_weight, item.leaf_weight)
        )
    return tuple(devices.values())


def _throttles(current: tuple[ThrottleDevice, ...], change: tuple[ThrottleDevice, ...]) -> tuple[ThrottleDevice, ...]:
    devices = {(item.major, item.minor): item for item in current}
    devices.update({(item.major, item.minor): item for item in change})
    return tuple(devices.values())
