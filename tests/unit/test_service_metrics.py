from __future__ import annotations

from shimd.api.containerd import cgroups_v1_pb2 as v1
from shimd.api.containerd import cgroups_v2_pb2 as v2
from shimd.cgroups.stats import (
    NO_LIMIT,
    BlkioEntry,
    BlkioStats,
    Burst,
    CpuStats,
    HugetlbStats,
    IoDevice,
    MemoryEntry,
    MemoryStats,
    PidsStats,
    Pressure,
    Psi,
    RdmaEntry,
    RdmaStats,
    Stats,
    Throttling,
)
from shimd.service.metrics import metrics


def _stats(version: int) -> Stats:
    return Stats(
        version,
        cpu=CpuStats(5000, 2000, 3000, (4000, 1000), throttling=Throttling(7, 6, 5000), burst=Burst(4, 3000)),
        memory=MemoryStats(
            usage=MemoryEntry(1, 2, 3, 4),
            swap=MemoryEntry(5, 6, 7, 8),
            swap_only=MemoryEntry(9, 10, 0, NO_LIMIT),
            raw={"rss": 11, "pgpgin": 12, "total_pgmajfault": 13, "hierarchical_memsw_limit": 14, "anon": 15, "new": 1},
            events={"oom_kill": 16},
            under_oom=1,
            oom_kill=17,
            pressure=Pressure(Psi(0.5, 0.25, 0.125, 18), Psi()),
        ),
        pids=PidsStats(19, 0),
        blkio=BlkioStats(service_bytes=(BlkioEntry(8, 0, "Read", 20),), devices=(IoDevice(8, 0, 21, 22, 23, 24),)),
        hugetlb={"2MB": HugetlbStats(25, 26, 27)},
        rdma=RdmaStats((RdmaEntry("mlx", 28, 29),), (RdmaEntry("mlx", 30, 31),)),
    )


def test_v1() -> None:
    m = metrics(_stats(1))
    assert isinstance(m, v1.Metrics)
    assert (m.cpu.usage.total, m.cpu.usage.kernel, m.cpu.usage.user, list(m.cpu.usage.per_cpu)) == (
        5000,
        2000,
        3000,
        [4000, 1000],
    )
    assert (m.cpu.throttling.periods, m.cpu.throttling.throttled_periods, m.cpu.throttling.throttled_time) == (
        7,
        6,
        5000,
    )
    assert (m.memory.usage.usage, m.memory.usage.max, m.memory.usage.failcnt, m.memory.usage.limit) == (1, 2, 3, 4)
    assert (m.memory.swap.usage, m.memory.rss, m.memory.pg_pg_in, m.memory.total_pg_maj_fault) == (5, 11, 12, 13)
    assert m.memory.hierarchical_swap_limit == 14
    assert (m.memory_oom_control.under_oom, m.memory_oom_control.oom_kill) == (1, 17)
    assert (m.pids.current, m.pids.limit) == (19, 0)
    assert [(e.op, e.major, e.minor, e.value) for e in m.blkio.io_service_bytes_recursive] == [("Read", 8, 0, 20)]
    assert [(h.pagesize, h.usage, h.max, h.failcnt) for h in m.hugetlb] == [("2MB", 25, 26, 27)]
    assert (m.rdma.current[0].device, m.rdma.limit[0].hca_objects) == ("mlx", 31)


def test_v2() -> None:
    m = metrics(_stats(2))
    assert isinstance(m, v2.Metrics)
    assert (m.cpu.usage_usec, m.cpu.user_usec, m.cpu.system_usec) == (5, 3, 2)
    assert (m.cpu.throttled_usec, m.cpu.nr_bursts, m.cpu.burst_usec) == (5, 4, 3)
    assert (m.memory.anon, m.memory.usage, m.memory.usage_limit, m.memory.max_usage) == (15, 1, 4, 2)
    assert (m.memory.swap_usage, m.memory.swap_limit, m.memory.swap_max_usage) == (9, NO_LIMIT, 10)
    assert (m.memory.psi.some.avg10, m.memory.psi.some.total) == (0.5, 18)
    assert not m.cpu.HasField("psi")
    assert m.memory_events.oom_kill == 16
    assert (m.pids.current, m.pids.limit) == (19, NO_LIMIT)
    assert [(e.rbytes, e.wbytes, e.rios, e.wios) for e in m.io.usage] == [(21, 22, 23, 24)]
    assert [(h.pagesize, h.current, h.max, h.failcnt) for h in m.hugetlb] == [("2MB", 25, 26, 27)]


def test_every_field_of_memory_stat_has_a_source() -> None:
    """The message's names are the kernel's, but for those in the table."""
    names = {f.name: 1 for f in v1.MemoryStat.DESCRIPTOR.fields if f.message_type is None}
    assert len(names) == 32
    raw = {"pgpgin": 1, "pgpgout": 1, "pgfault": 1, "pgmajfault": 1, "hierarchical_memory_limit": 1}
    raw |= {name: 1 for name in names if "pg_" not in name}
    raw |= {f"total_{name}": 1 for name in ("pgpgin", "pgpgout", "pgfault", "pgmajfault")}
    raw["hierarchical_memsw_limit"] = 1
    m = metrics(Stats(1, memory=MemoryStats(raw=raw)))
    assert isinstance(m, v1.Metrics)
    assert all(getattr(m.memory, name) == 1 for name in names)
