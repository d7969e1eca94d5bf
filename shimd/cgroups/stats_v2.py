"""Statistics of cgroup v2, in the shape of v1 where the two mean the same."""

from __future__ import annotations

import os

from shimd.cgroups.files import Directory, ids_of
from shimd.cgroups.stats import (
    NO_LIMIT,
    BlkioEntry,
    BlkioStats,
    Burst,
    CpusetStats,
    CpuStats,
    HugetlbStats,
    IoDevice,
    MemoryEntry,
    MemoryStats,
    MiscEntry,
    NumaNodes,
    NumaUsage,
    PidsStats,
    RdmaStats,
    Stats,
    Throttling,
    id_list,
    key_values,
    number,
    pressure,
    rdma_entries,
)

_USEC = 1000  # nanoseconds


def read(directory: Directory) -> Stats:
    """Controllers that are not enabled for this cgroup are skipped."""
    return Stats(
        version=2,
        cpu=_cpu(directory),
        cpuset=CpusetStats(
            cpus=id_list(directory.read_or("cpuset.cpus.effective", "")),
            mems=id_list(directory.read_or("cpuset.mems.effective", "")),
        ),
        memory=_memory(directory),
        pids=_pids(directory),
        blkio=_io(directory),
        hugetlb=_hugetlb(directory),
        rdma=RdmaStats(
            rdma_entries(directory.read_or("rdma.current", "")), rdma_entries(directory.read_or("rdma.max", ""))
        ),
        misc=misc(directory.read_or("misc.current", ""), directory.read_or("misc.events", "")),
    )


def _cpu(directory: Directory) -> CpuStats:
    """cpu.stat is there without the controller too."""
    values = key_values(directory.read_or("cpu.stat", ""))
    return CpuStats(
        total=values.get("usage_usec", 0) * _USEC,
        kernel=values.get("system_usec", 0) * _USEC,
        user=values.get("user_usec", 0) * _USEC,
        throttling=Throttling(
            values.get("nr_periods", 0), values.get("nr_throttled", 0), values.get("throttled_usec", 0) * _USEC
        ),
        burst=Burst(values.get("nr_bursts", 0), values.get("burst_usec", 0) * _USEC),
        pressure=pressure(directory.read_or("cpu.pressure", "")),
    )


def _memory(directory: Directory) -> MemoryStats:
    raw = key_values(directory.read_or("memory.stat", ""))
    usage, swap_only = _memory_entry(directory, "memory"), _memory_entry(directory, "memory.swap")
    events = key_values(directory.read_or("memory.events", ""))
    return MemoryStats(
        cache=raw.get("file", 0),
        usage=usage,
        swap=_with_swap(usage, swap_only),
        swap_only=swap_only,
        use_hierarchy=True,
        numa=numa(directory.read_or("memory.numa_stat", "")),
        raw=raw,
        events=events,
        oom_kill=events.get("oom_kill", 0),
        pressure=pressure(directory.read_or("memory.pressure", "")),
    )


def _memory_entry(directory: Directory, name: str) -> MemoryEntry:
    usage = directory.read_or(f"{name}.current", "")
    if not usage:
        return MemoryEntry()
    # peak: 5.19 for memory, 6.5 for swap
    return MemoryEntry(
        usage=number(usage),
        max=number(directory.read_or(f"{name}.peak", "")),
        limit=number(directory.read_or(f"{name}.max", "")),
    )


def _with_swap(usage: MemoryEntry, swap: MemoryEntry) -> MemoryEntry:
    """What v1 calls memsw. The two peaks need not have been at the same time, so there is none of the sum."""
    unlimited = NO_LIMIT in (swap.limit, usage.limit)
    return MemoryEntry(usage=usage.usage + swap.usage, limit=NO_LIMIT if unlimited else usage.limit + swap.limit)


def numa(text: str) -> NumaUsage:
    """memory.numa_stat: lines "anon N0=4096 N1=0", in bytes."""
    lines: dict[str, NumaNodes] = {}
    for line in text.splitlines():
        name, *fields = line.split()
        nodes = {int(node[1:]): int(size) for node, _, size in (field.partition("=") for field in fields)}
        lines[name] = NumaNodes(sum(nodes.values()), nodes)
    none = NumaNodes()
    return NumaUsage(
        file=lines.get("file", none), anon=lines.get("anon", none), unevictable=lines.get("unevictable", none)
    )


def _pids(directory: Directory) -> PidsStats:
    current = directory.read_or("pids.current", "")
    if not current:  # there is no such controller, or it is not passed on
        return PidsStats(len(ids_of(directory)))
    limit = number(directory.read_or("pids.max", ""))
    # libcontainer reports "no limit" as 0 here, and containerd's consumers know it so
    return PidsStats(number(current), 0 if limit == NO_LIMIT else limit)


def _io(directory: Directory) -> BlkioStats:
    devices = io_devices(directory.read_or("io.stat", ""))
    size, count = [], []
    for item in devices:
        place = (item.major, item.minor)
        size += [BlkioEntry(*place, "Read", item.rbytes), BlkioEntry(*place, "Write", item.wbytes)]
        count += [BlkioEntry(*place, "Read", item.rios), BlkioEntry(*place, "Write", item.wios)]
    return BlkioStats(
        service_bytes=tuple(size),
        serviced=tuple(count),
        devices=devices,
        pressure=pressure(directory.read_or("io.pressure", "")),
    )


def io_devices(text: str) -> tuple[IoDevice, ...]:
    """io.stat: lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0", perhaps with more keys, or none at all."""
    devices = []
    for line in text.splitlines():
        device, *fields = line.split()
        if ":" not in device:
            continue
        major, _, minor = device.partition(":")
        values = {key: int(value) for key, _, value in (field.partition("=") for field in fields) if value.isdigit()}
        known = {key: value for key, value in values.items() if key in IoDevice._fields}
        if known:
            devices.append(IoDevice(int(major), int(minor), **known))
    return tuple(devices)


def _hugetlb(directory: Directory) -> dict[str, HugetlbStats]:
    names = os.listdir(directory.fd)
    sizes = {name.split(".")[1] for name in names if name.startswith("hugetlb.")}
    figures = {}
    for size in sorted(sizes):
        # reservations are what a container is killed for, so they are counted where the kernel does (5.7)
        usage = directory.read_or(f"hugetlb.{size}.rsvd.current", "") or directory.read_or(
            f"hugetlb.{size}.current", ""
        )
        failures = key_values(directory.read_or(f"hugetlb.{size}.events", ""))
        figures[size] = HugetlbStats(usage=number(usage), failcnt=failures.get("max", 0))
    return figures


def misc(current: str, events: str) -> dict[str, MiscEntry]:
    """misc.current: lines "res_a 3"; misc.events: lines "res_a.max 1"."""
    usage = key_values(current)
    refused = key_values(events)
    return {name: MiscEntry(value, refused.get(f"{name}.max", 0)) for name, value in usage.items()}
