"""Statistics of a cgroup as containerd's Metrics messages, v1 or v2 as the host's cgroups are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shimd.api.containerd import cgroups_v1_pb2 as v1
from shimd.api.containerd import cgroups_v2_pb2 as v2
from shimd.cgroups.stats import NO_LIMIT, BlkioEntry, MemoryEntry, MemoryStats, Pressure, Psi, RdmaEntry, Stats

_USEC = 1000  # nanoseconds

# Fields of the v1 message that are called otherwise in memory.stat; each also exists as total_*.
_V1_NAMES = {"pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout", "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault"}


def _v1_keys() -> dict[str, str]:
    keys = {}
    for field in v1.MemoryStat.DESCRIPTOR.fields:
        if field.message_type is None:
            prefix = "total_" if field.name.startswith("total_") else ""
            name = field.name.removeprefix(prefix)
            keys[field.name] = prefix + _V1_NAMES.get(name, name)
    keys["hierarchical_swap_limit"] = "hierarchical_memsw_limit"
    return keys


_V1_KEYS = _v1_keys()
_V2_KEYS = {f.name: f.name for f in v2.MemoryStat.DESCRIPTOR.fields if f.message_type is None}


def metrics(stats: Stats) -> v1.Metrics | v2.Metrics:
    return _metrics_v1(stats) if stats.version == 1 else _metrics_v2(stats)


def _metrics_v1(stats: Stats) -> v1.Metrics:
    cpu, memory, throttling, blkio = stats.cpu, stats.memory, stats.cpu.throttling, stats.blkio
    return v1.Metrics(
        pids=v1.PidsStat(current=stats.pids.current, limit=stats.pids.limit),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(total=cpu.total, kernel=cpu.kernel, user=cpu.user, per_cpu=cpu.percpu),
            throttling=v1.Throttle(
                periods=throttling.periods,
                throttled_periods=throttling.throttled_periods,
                throttled_time=throttling.throttled_time,
            ),
        ),
        memory=_memory_v1(memory),
        memory_oom_control=v1.MemoryOomControl(
            oom_kill_disable=memory.oom_kill_disable, under_oom=memory.under_oom, oom_kill=memory.oom_kill
        ),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=_blkio_v1(blkio.service_bytes),
            io_serviced_recursive=_blkio_v1(blkio.serviced),
            io_queued_recursive=_blkio_v1(blkio.queued),
            io_service_time_recursive=_blkio_v1(blkio.service_time),
            io_wait_time_recursive=_blkio_v1(blkio.wait_time),
            io_merged_recursive=_blkio_v1(blkio.merged),
            io_time_recursive=_blkio_v1(blkio.time),
            sectors_recursive=_blkio_v1(blkio.sectors),
        ),
        hugetlb=[
            v1.HugetlbStat(pagesize=size, usage=h.usage, max=h.max, failcnt=h.failcnt)
            for size, h in stats.hugetlb.items()
        ],
        rdma=v1.RdmaStat(current=_rdma_v1(stats.rdma.current), limit=_rdma_v1(stats.rdma.limit)),
    )


def _memory_v1(memory: MemoryStats) -> v1.MemoryStat:
    return v1.MemoryStat(
        usage=_entry_v1(memory.usage),
        swap=_entry_v1(memory.swap),
        kernel=_entry_v1(memory.kernel),
        kernel_tcp=_entry_v1(memory.kernel_tcp),
        **_selected(memory.raw, _V1_KEYS),
    )


def _entry_v1(entry: MemoryEntry) -> v1.MemoryEntry:
    return v1.MemoryEntry(limit=entry.limit, usage=entry.usage, max=entry.max, failcnt=entry.failcnt)


def _blkio_v1(entries: Iterable[BlkioEntry]) -> list[v1.BlkIOEntry]:
    return [v1.BlkIOEntry(op=e.op, major=e.major, minor=e.minor, value=e.value) for e in entries]


def _rdma_v1(entries: Iterable[RdmaEntry]) -> list[v1.RdmaEntry]:
    return [v1.RdmaEntry(device=e.device, hca_handles=e.hca_handles, hca_objects=e.hca_objects) for e in entries]


def _metrics_v2(stats: Stats) -> v2.Metrics:
    memory = stats.memory
    return v2.Metrics(
        pids=v2.PidsStat(current=stats.pids.current, limit=stats.pids.limit or NO_LIMIT),
        cpu=_cpu_v2(stats),
        memory=v2.MemoryStat(
            usage=memory.usage.usage,
            usage_limit=memory.usage.limit,
            max_usage=memory.usage.max,
            swap_usage=memory.swap_only.usage,
            swap_limit=memory.swap_only.limit,
            swap_max_usage=memory.swap_only.max,
            psi=_pressure(memory.pressure),
            **_selected(memory.raw, _V2_KEYS),
        ),
        memory_events=v2.MemoryEvents(
            low=memory.events.get("low", 0),
            high=memory.events.get("high", 0),
            max=memory.events.get("max", 0),
            oom=memory.events.get("oom", 0),
            oom_kill=memory.events.get("oom_kill", 0),
            oom_group_kill=memory.events.get("oom_group_kill", 0),
        ),
        io=v2.IOStat(
            usage=[
                v2.IOEntry(major=d.major, minor=d.minor, rbytes=d.rbytes, wbytes=d.wbytes, rios=d.rios, wios=d.wios)
                for d in stats.blkio.devices
            ],
            psi=_pressure(stats.blkio.pressure),
        ),
        hugetlb=[
            v2.HugeTlbStat(pagesize=size, current=h.usage, max=h.max, failcnt=h.failcnt)
            for size, h in stats.hugetlb.items()
        ],
        rdma=v2.RdmaStat(current=_rdma_v2(stats.rdma.current), limit=_rdma_v2(stats.rdma.limit)),
    )


def _cpu_v2(stats: Stats) -> v2.CPUStat:
    cpu, throttling, burst = stats.cpu, stats.cpu.throttling, stats.cpu.burst
    return v2.CPUStat(
        usage_usec=cpu.total // _USEC,
        user_usec=cpu.user // _USEC,
        system_usec=cpu.kernel // _USEC,
        nr_periods=throttling.periods,
        nr_throttled=throttling.throttled_periods,
        throttled_usec=throttling.throttled_time // _USEC,
        nr_bursts=burst.periods,
        burst_usec=burst.time // _USEC,
        psi=_pressure(cpu.pressure),
    )


def _rdma_v2(entries: Iterable[RdmaEntry]) -> list[v2.RdmaEntry]:
    return [v2.RdmaEntry(device=e.device, hca_handles=e.hca_handles, hca_objects=e.hca_objects) for e in entries]


def _pressure(pressure: Pressure | None) -> v2.PSIStats | None:
    if pressure is None:
        return None
    return v2.PSIStats(some=_psi(pressure.some), full=_psi(pressure.full))


def _psi(psi: Psi) -> v2.PSIData:
    return v2.PSIData(avg10=psi.avg10, avg60=psi.avg60, avg300=psi.avg300, total=psi.total)


def _selected(raw: Mapping[str, int], keys: Mapping[str, str]) -> dict[str, int]:
    """Message field -> value, for what this kernel's memory.stat has."""
    return {field: raw[key] for field, key in keys.items() if key in raw}
