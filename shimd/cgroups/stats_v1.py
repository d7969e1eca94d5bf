"""Statistics of cgroup v1, one reader per controller."""

from __future__ import annotations

import os

from shimd.cgroups import stats
from shimd.cgroups.files import Directory, open_if_there
from shimd.cgroups.place import Group
from shimd.cgroups.stats import (
    BlkioEntry,
    BlkioStats,
    Burst,
    CpusetStats,
    CpuStats,
    HugetlbStats,
    MemoryEntry,
    MemoryStats,
    NumaNodes,
    NumaUsage,
    PidsStats,
    RdmaStats,
    Stats,
    Throttling,
    id_list,
    key_values,
    number,
    rdma_entries,
)
from shimd.typed import Callable

_NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def read(groups: tuple[Group, ...]) -> Stats:
    """Controllers that are not mounted, and files that this kernel lacks, are skipped."""
    found = Stats(version=1)
    for group in groups:
        readers = [_READERS[name] for name in group.controllers if name in _READERS]
        directory = open_if_there(group.mount, group.path) if readers else None
        if directory is None:
            continue
        with directory:
            for reader in readers:
                found = reader(directory, found)
    return found


def _cpu(directory: Directory, found: Stats) -> Stats:
    values = key_values(directory.read_or("cpu.stat", ""))
    throttling = Throttling(values.get("nr_periods", 0), values.get("nr_throttled", 0), values.get("throttled_time", 0))
    burst = Burst(values.get("nr_bursts", 0), values.get("burst_time", 0))
    return found._replace(cpu=found.cpu._replace(throttling=throttling, burst=burst))


def _cpuacct(directory: Directory, found: Stats) -> Stats:
    times = key_values(directory.read_or("cpuacct.stat", ""))
    total = number(directory.read_or("cpuacct.usage", ""))
    user, kernel = split_times(times.get("user", 0), times.get("system", 0))
    percpu = tuple(int(word) for word in directory.read_or("cpuacct.usage_percpu", "").split())
    percpu_user, percpu_kernel = usage_all(directory.read_or("cpuacct.usage_all", ""))
    cpu: CpuStats = found.cpu._replace(
        total=total, user=user, kernel=kernel, percpu=percpu, percpu_user=percpu_user, percpu_kernel=percpu_kernel
    )
    return found._replace(cpu=cpu)


def split_times(user_ticks: int, system_ticks: int) -> tuple[int, int]:
    return user_ticks * _NANOSECONDS_PER_TICK, system_ticks * _NANOSECONDS_PER_TICK


def usage_all(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """cpuacct.usage_all: a head line "cpu user system", then one line per CPU; (user, kernel)."""
    rows = [line.split() for line in text.splitlines()[1:]]
    rows = [row for row in rows if len(row) == 3]
    return tuple(int(row[1]) for row in rows), tuple(int(row[2]) for row in rows)


def _cpuset(directory: Directory, found: Stats) -> Stats:
    def flag(name: str) -> int:
        return number(directory.read_or(f"cpuset.{name}", ""))

    return found._replace(
        cpuset=CpusetStats(
            cpus=id_list(directory.read_or("cpuset.cpus", "")),
            cpu_exclusive=flag("cpu_exclusive"),
            mems=id_list(directory.read_or("cpuset.mems", "")),
            mem_hardwall=flag("mem_hardwall"),
            mem_exclusive=flag("mem_exclusive"),
            memory_migrate=flag("memory_migrate"),
            memory_spread_page=flag("memory_spread_page"),
            memory_spread_slab=flag("memory_spread_slab"),
            memory_pressure=flag("memory_pressure"),
            sched_load_balance=flag("sched_load_balance"),
            sched_relax_domain_level=int(directory.read_or("cpuset.sched_relax_domain_level", "0") or 0),
        )
    )


def _memory(directory: Directory, found: Stats) -> Stats:
    raw = key_values(directory.read_or("memory.stat", ""))
    usage, swap = _memory_entry(directory, ""), _memory_entry(directory, "memsw.")
    numa, numa_hierarchical = numa_stat(directory.read_or("memory.numa_stat", ""))
    control = key_values(directory.read_or("memory.oom_control", ""))
    return found._replace(
        memory=MemoryStats(
            cache=raw.get("cache", 0),
            usage=usage,
            swap=swap,
            swap_only=MemoryEntry(usage=max(swap.usage - usage.usage, 0), failcnt=max(swap.failcnt - usage.failcnt, 0)),
            kernel=_memory_entry(directory, "kmem."),
            kernel_tcp=_memory_entry(directory, "kmem.tcp."),
            numa=numa,
            numa_hierarchical=numa_hierarchical,
            use_hierarchy=directory.read_or("memory.use_hierarchy", "1\n") == "1\n",
            raw=raw,
            oom_kill_disable=control.get("oom_kill_disable", 0),
            under_oom=control.get("under_oom", 0),
            oom_kill=control.get("oom_kill", 0),
        )
    )


def _memory_entry(directory: Directory, kind: str) -> MemoryEntry:
    usage = directory.read_or(f"memory.{kind}usage_in_bytes", "")
    if not usage:  # no swap accounting; kernel memory accounting is being removed
        return MemoryEntry()
    return MemoryEntry(
        usage=number(usage),
        max=number(directory.read_or(f"memory.{kind}max_usage_in_bytes", "")),
        failcnt=number(directory.read_or(f"memory.{kind}failcnt", "")),
        limit=number(directory.read_or(f"memory.{kind}limit_in_bytes", "")),
    )


def numa_stat(text: str) -> tuple[NumaUsage, NumaUsage]:
    """memory.numa_stat: "file=12 N0=10 N1=2"; (this cgroup alone, with those below it)."""
    lines: dict[str, NumaNodes] = {}
    for line in text.splitlines():
        head, *nodes = line.split()
        name, _, total = head.partition("=")
        pages = {int(node[1:]): int(count) for node, _, count in (field.partition("=") for field in nodes)}
        lines[name] = NumaNodes(int(total), pages)

    def usage(prefix: str) -> NumaUsage:
        none = NumaNodes()
        return NumaUsage(*(lines.get(prefix + name, none) for name in ("total", "file", "anon", "unevictable")))

    return usage(""), usage("hierarchical_")


def _pids(directory: Directory, found: Stats) -> Stats:
    limit = number(directory.read_or("pids.max", ""))
    # libcontainer reports "no limit" as 0 here, and containerd's consumers know it so
    return found._replace(
        pids=PidsStats(
            current=number(directory.read_or("pids.current", "")), limit=0 if limit == stats.NO_LIMIT else limit
        )
    )


def _blkio(directory: Directory, found: Stats) -> Stats:
    return found._replace(blkio=_blkio_bfq(directory) or _blkio_cfq(directory) or _blkio_throttle(directory))


def _table(directory: Directory, *names: str) -> tuple[BlkioEntry, ...]:
    """The first of these files that exists."""
    for name in names:
        text = directory.read_or(f"blkio.{name}", "")
        if text:
            return blkio_table(text)
    return ()


def blkio_table(text: str) -> tuple[BlkioEntry, ...]:
    """Lines "8:0 Read 1024" or "8:0 6792"; the grand "Total 1024" is no device's and left out."""
    entries = []
    for line in text.splitlines():
        device, *fields = line.split()
        if ":" not in device or not fields:
            continue
        major, _, minor = device.partition(":")
        op = fields[0] if len(fields) > 1 else ""
        entries.append(BlkioEntry(int(major), int(minor), op, int(fields[-1])))
    return tuple(entries)


def _blkio_family(directory: Directory, prefix: str, time: str) -> BlkioStats:
    def table(name: str) -> tuple[BlkioEntry, ...]:
        return _table(directory, f"{prefix}{name}_recursive")

    return BlkioStats(
        service_bytes=table("io_service_bytes"),
        serviced=table("io_serviced"),
        queued=table("io_queued"),
        service_time=table("io_service_time"),
        wait_time=table("io_wait_time"),
        merged=table("io_merged"),
        time=table(time),
        sectors=table("sectors"),
    )


def _blkio_bfq(directory: Directory) -> BlkioStats | None:
    """Only when the BFQ scheduler serves a disk are there figures in its files."""
    if not _table(directory, "bfq.io_serviced_recursive"):
        return None
    return _blkio_family(directory, "bfq.", "time")


def _blkio_cfq(directory: Directory) -> BlkioStats | None:
    if not _table(directory, "io_serviced_recursive"):
        return None
    return _blkio_family(directory, "", "time")


def _blkio_throttle(directory: Directory) -> BlkioStats:
    """Any other scheduler: only the throttling layer counts."""
    return BlkioStats(
        service_bytes=_table(directory, "throttle.io_service_bytes_recursive", "throttle.io_service_bytes"),
        serviced=_table(directory, "throttle.io_serviced_recursive", "throttle.io_serviced"),
    )


def _hugetlb(directory: Directory, found: Stats) -> Stats:
    sizes = {name.split(".")[1] for name in os.listdir(directory.fd) if name.startswith("hugetlb.")}
    figures = {}
    for size in sorted(sizes):
        # reservations are what a container is killed for, so they are counted where the kernel does (5.7)
        prefix = f"hugetlb.{size}.rsvd" if directory.has(f"hugetlb.{size}.rsvd.usage_in_bytes") else f"hugetlb.{size}"
        figures[size] = HugetlbStats(
            usage=number(directory.read_or(f"{prefix}.usage_in_bytes", "")),
            max=number(directory.read_or(f"{prefix}.max_usage_in_bytes", "")),
            failcnt=number(directory.read_or(f"{prefix}.failcnt", "")),
        )
    return found._replace(hugetlb=figures)


def _rdma(directory: Directory, found: Stats) -> Stats:
    current, limit = directory.read_or("rdma.current", ""), directory.read_or("rdma.max", "")
    return found._replace(rdma=RdmaStats(rdma_entries(current), rdma_entries(limit)))


_READERS: dict[str, Callable[[Directory, Stats], Stats]] = {
    "cpu": _cpu,
    "cpuacct": _cpuacct,
    "cpuset": _cpuset,
    "memory": _memory,
    "pids": _pids,
    "blkio": _blkio,
    "hugetlb": _hugetlb,
    "rdma": _rdma,
}
