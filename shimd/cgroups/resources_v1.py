"""Resources as writes to the files of cgroup v1, per controller. Pure.

An absent value and 0 are both "leave it alone" for the values for which the OCI runtimes agree on that (memory,
shares, quota, period).
"""

from __future__ import annotations

from errno import ENOENT

from shimd.cgroups.files import Write
from shimd.errors import InvalidSpec, Problem
from shimd.oci.model import BlockIo, Cpu, HugepageLimit, Memory, Network, Pids, Rdma, Resources
from shimd.typed import Iterable

UNLIMITED = -1
# kernel/sched/sched.h: MIN_SHARES and MAX_SHARES, to which the kernel would clamp without a word
_MIN_SHARES, _MAX_SHARES = 2, 1 << 18


def writes(resources: Resources, *, memory_limit: int | None = None) -> dict[str, list[Write]]:
    """What to write per controller; controllers without work are absent.

    ``memory_limit`` is the limit that the cgroup has now, None for a fresh one. Raises InvalidSpec for values that v1
    cannot hold.
    """
    if resources.unified:
        raise _invalid("/linux/resources/unified", "invalid configuration: needs cgroup v2")
    found = {
        "memory": memory(resources.memory, memory_limit),
        "cpu": cpu(resources.cpu),
        "cpuset": cpuset(resources.cpu),
        "pids": pids(resources.pids),
        "blkio": block_io(resources.block_io),
        "hugetlb": hugetlb(resources.hugepage_limits),
        "net_cls": network_class(resources.network),
        "net_prio": network_priorities(resources.network),
        "rdma": rdma(resources.rdma.items()),
    }
    return {controller: items for controller, items in found.items() if items}


def _invalid(pointer: str, text: str) -> InvalidSpec:
    return InvalidSpec([Problem(pointer, text)])


def memory(wanted: Memory, current_limit: int | None) -> list[Write]:
    limits = _memory_limits(wanted, current_limit)
    if wanted.reservation:
        limits.append(Write("memory.soft_limit_in_bytes", str(wanted.reservation)))
    if wanted.disable_oom_killer:
        limits.append(Write("memory.oom_control", "1"))
    if wanted.swappiness is not None and wanted.swappiness != -1:
        if not 0 <= wanted.swappiness <= 100:
            raise _invalid(
                "/linux/resources/memory/swappiness",
                f"invalid memory swappiness value: {wanted.swappiness} (valid range is 0-100)",
            )
        limits.append(Write("memory.swappiness", str(wanted.swappiness)))
    return limits


def _memory_limits(wanted: Memory, current_limit: int | None) -> list[Write]:
    limit, swap = wanted.limit or 0, wanted.swap or 0
    writes = []
    if limit:
        writes.append(Write("memory.limit_in_bytes", str(limit)))
    if swap:
        writes.append(Write("memory.memsw.limit_in_bytes", str(swap)))
    elif limit == UNLIMITED:
        # Unlimited memory under the old limit of memory and swap would be refused; without swap accounting there is
        # no file.
        swap = UNLIMITED
        writes.append(Write("memory.memsw.limit_in_bytes", "-1", ignore=(ENOENT,)))
    # The kernel demands memory <= memory+swap after each single write, so a growing pair begins with swap.
    if len(writes) == 2 and (swap == UNLIMITED or (current_limit is not None and current_limit < swap)):
        writes.reverse()
    return writes


def cpu(wanted: Cpu) -> list[Write]:
    writes = []
    if wanted.idle is not None:
        writes.append(Write("cpu.idle", str(wanted.idle)))
    if wanted.shares and wanted.idle != 1:  # an idle group has a fixed weight and refuses shares
        _check_shares(wanted.shares)
        writes.append(Write("cpu.shares", str(wanted.shares)))
    # Period and burst are checked against the quota that is in force, so with a new quota they may have to come
    # after it.
    coupled = bool(wanted.quota)
    if wanted.period:
        writes.append(Write("cpu.cfs_period_us", str(wanted.period), retry=coupled))
    if wanted.burst is not None:
        writes.append(Write("cpu.cfs_burst_us", str(wanted.burst), ignore=(ENOENT,), retry=coupled))
    if wanted.quota:
        writes.append(Write("cpu.cfs_quota_us", str(wanted.quota)))
    return writes + _realtime(wanted)


def _realtime(wanted: Cpu) -> list[Write]:
    writes = []
    if wanted.realtime_period:
        writes.append(Write("cpu.rt_period_us", str(wanted.realtime_period), retry=bool(wanted.realtime_runtime)))
    if wanted.realtime_runtime:
        writes.append(Write("cpu.rt_runtime_us", str(wanted.realtime_runtime)))
    return writes


def _check_shares(shares: int) -> None:
    if shares < _MIN_SHARES:
        raise _invalid("/linux/resources/cpu/shares", f"the minimum allowed cpu-shares is {_MIN_SHARES}")
    if shares > _MAX_SHARES:
        raise _invalid("/linux/resources/cpu/shares", f"the maximum allowed cpu-shares is {_MAX_SHARES}")


def cpuset(wanted: Cpu) -> list[Write]:
    writes = []
    if wanted.cpus:
        writes.append(Write("cpuset.cpus", wanted.cpus))
    if wanted.mems:
        writes.append(Write("cpuset.mems", wanted.mems))
    return writes


def pids(wanted: Pids) -> list[Write]:
    """0 becomes 1, as systemd would have it and as runc does: the same container limits with either driver."""
    if wanted.limit is None:
        return []
    return [Write("pids.max", "max" if wanted.limit < 0 else str(wanted.limit or 1))]


def block_io(wanted: BlockIo) -> list[Write]:
    """Weights are those of the BFQ scheduler: the other one that had any left the kernel with 5.0."""
    writes = []
    if wanted.weight:
        writes.append(Write("blkio.bfq.weight", str(wanted.weight)))
    if wanted.leaf_weight:
        writes.append(Write("blkio.leaf_weight", str(wanted.leaf_weight)))
    for device in wanted.weight_device:
        if device.weight:
            writes.append(Write("blkio.bfq.weight_device", f"{device.major}:{device.minor} {device.weight}"))
        if device.leaf_weight:
            writes.append(Write("blkio.leaf_weight_device", f"{device.major}:{device.minor} {device.leaf_weight}"))
    for file, devices in (
        ("blkio.throttle.read_bps_device", wanted.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", wanted.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", wanted.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", wanted.throttle_write_iops_device),
    ):
        writes += [Write(file, f"{throttle.major}:{throttle.minor} {throttle.rate}") for throttle in devices]
    return writes


def hugetlb(wanted: Iterable[HugepageLimit]) -> list[Write]:
    writes = []
    for page in wanted:
        writes.append(Write(f"hugetlb.{page.page_size}.limit_in_bytes", str(page.limit)))
        # reservation limits came with 5.7
        writes.append(Write(f"hugetlb.{page.page_size}.rsvd.limit_in_bytes", str(page.limit), ignore=(ENOENT,)))
    return writes


def network_class(wanted: Network) -> list[Write]:
    return [Write("net_cls.classid", str(wanted.class_id))] if wanted.class_id else []


def network_priorities(wanted: Network) -> list[Write]:
    return [Write("net_prio.ifpriomap", f"{item.name} {item.priority}") for item in wanted.priorities]


def rdma(wanted: Iterable[tuple[str, Rdma]]) -> list[Write]:
    """The same file and text on v1 and v2."""
    writes = []
    for device, limit in wanted:
        text = device
        if limit.hca_handles is not None:
            text += f" hca_handle={limit.hca_handles}"
        if limit.hca_objects is not None:
            text += f" hca_object={limit.hca_objects}"
        writes.append(Write("rdma.max", text))
    return writes
