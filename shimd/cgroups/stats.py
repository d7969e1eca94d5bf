"""What a container uses, in the shape that libcontainer reports and that containerd's v1 and v2 metrics are filled
from.

Times are nanoseconds, sizes bytes; NO_LIMIT stands for "max". A controller that is not there leaves its record at
the defaults.
"""

from __future__ import annotations

from shimd.records import Record
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_LIMIT = 2**64 - 1


class Psi(Record):
    """One line of a pressure file: per cent of time over 10, 60 and 300 s; ``total`` in microseconds."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: int = 0


class Pressure(Record):
    some: Psi = Psi()
    full: Psi = Psi()


class Throttling(Record):
    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class Burst(Record):
    periods: int = 0
    time: int = 0


class CpuStats(Record):
    """``percpu``, ``percpu_kernel`` and ``percpu_user`` only on v1."""

    total: int = 0
    kernel: int = 0
    user: int = 0
    percpu: tuple[int, ...] = ()
    percpu_kernel: tuple[int, ...] = ()
    percpu_user: tuple[int, ...] = ()
    throttling: Throttling = Throttling()
    burst: Burst = Burst()
    pressure: Pressure | None = None


class CpusetStats(Record):
    """``cpus`` and ``mems`` are spelt out; the flags exist on v1 only."""

    cpus: tuple[int, ...] = ()
    cpu_exclusive: int = 0
    mems: tuple[int, ...] = ()
    mem_hardwall: int = 0
    mem_exclusive: int = 0
    memory_migrate: int = 0
    memory_spread_page: int = 0
    memory_spread_slab: int = 0
    memory_pressure: int = 0
    sched_load_balance: int = 0
    sched_relax_domain_level: int = 0


class MemoryEntry(Record):
    usage: int = 0
    max: int = 0
    failcnt: int = 0
    limit: int = 0


class NumaNodes(Record):
    """One line of memory.numa_stat: pages in all and per node."""

    total: int = 0
    nodes: Mapping[int, int] = {}


class NumaUsage(Record):
    total: NumaNodes = NumaNodes()
    file: NumaNodes = NumaNodes()
    anon: NumaNodes = NumaNodes()
    unevictable: NumaNodes = NumaNodes()


class MemoryStats(Record):
    """``swap`` is memory and swap together, as on v1, ``swap_only`` swap alone; ``raw`` is memory.stat; ``events``
    memory.events of v2; ``oom_kill_disable``, ``under_oom`` and ``oom_kill`` memory.oom_control of v1.
    """

    cache: int = 0
    usage: MemoryEntry = MemoryEntry()
    swap: MemoryEntry = MemoryEntry()
    swap_only: MemoryEntry = MemoryEntry()
    kernel: MemoryEntry = MemoryEntry()
    kernel_tcp: MemoryEntry = MemoryEntry()
    numa: NumaUsage = NumaUsage()
    numa_hierarchical: NumaUsage = NumaUsage()
    use_hierarchy: bool = False
    raw: Mapping[str, int] = {}
    events: Mapping[str, int] = {}
    oom_kill_disable: int = 0
    under_oom: int = 0
    oom_kill: int = 0
    pressure: Pressure | None = None


class PidsStats(Record):
    current: int = 0
    limit: int = 0


class BlkioEntry(Record):
    major: int
    minor: int
    op: str
    value: int


class IoDevice(Record):
    """One line of io.stat (v2)."""

    major: int
    minor: int
    rbytes: int = 0
    wbytes: int = 0
    rios: int = 0
    wios: int = 0
    dbytes: int = 0
    dios: int = 0


class BlkioStats(Record):
    """v1 tables; on v2 the first two are filled from io.stat, whose lines are in ``devices``."""

    service_bytes: tuple[BlkioEntry, ...] = ()
    serviced: tuple[BlkioEntry, ...] = ()
    queued: tuple[BlkioEntry, ...] = ()
    service_time: tuple[BlkioEntry, ...] = ()
    wait_time: tuple[BlkioEntry, ...] = ()
    merged: tuple[BlkioEntry, ...] = ()
    time: tuple[BlkioEntry, ...] = ()
    sectors: tuple[BlkioEntry, ...] = ()
    devices: tuple[IoDevice, ...] = ()
    pressure: Pressure | None = None


class HugetlbStats(Record):
    usage: int = 0
    max: int = 0
    failcnt: int = 0


class RdmaEntry(Record):
    device: str
    hca_handles: int
    hca_objects: int


class RdmaStats(Record):
    current: tuple[RdmaEntry, ...] = ()
    limit: tuple[RdmaEntry, ...] = ()


class MiscEntry(Record):
    usage: int = 0
    events: int = 0


class Stats(Record):
    """``version`` is 1 or 2: which of containerd's two Metrics messages it becomes."""

    version: int
    cpu: CpuStats = CpuStats()
    cpuset: CpusetStats = CpusetStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    blkio: BlkioStats = BlkioStats()
    hugetlb: Mapping[str, HugetlbStats] = {}
    rdma: RdmaStats = RdmaStats()
    misc: Mapping[str, MiscEntry] = {}


# ---- parsing ---------------------------------------------------------------------------------------------------------


def number(text: str) -> int:
    """A lone value; "max" is NO_LIMIT, nothing 0; v1 prints negative counters now and then, which count as 0."""
    text = text.strip()
    if text == "max":
        return NO_LIMIT
    return max(int(text), 0) if text else 0


def key_values(text: str) -> dict[str, int]:
    """Lines "key number"; other lines are skipped."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            found[key] = max(int(value), 0)
    return found


def id_list(text: str) -> tuple[int, ...]:
    """ "0-2,7" → (0, 1, 2, 7)."""
    ids: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            ids.extend(range(int(first), int(last or first) + 1))
    return tuple(ids)


def pressure(text: str) -> Pressure | None:
    """A pressure file; None for an empty text, which stands for a file that is not there."""
    lines: dict[str, Psi] = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        values = dict(field.split("=", 1) for field in fields)
        lines[kind] = Psi(
            float(values.get("avg10", 0)),
            float(values.get("avg60", 0)),
            float(values.get("avg300", 0)),
            int(values.get("total", 0)),
        )
    return Pressure(lines.get("some", Psi()), lines.get("full", Psi())) if lines else None


def rdma_entries(text: str) -> tuple[RdmaEntry, ...]:
    """Lines "mlx4_0 hca_handle=2 hca_object=max"."""
    entries = []
    for line in text.splitlines():
        device, *fields = line.split()
        values = dict(field.split("=", 1) for field in fields)
        limits = (number(values.get(key, "0")) for key in ("hca_handle", "hca_object"))
        # 32 bits wide in containerd's messages
        entries.append(RdmaEntry(device, *(min(limit, 2**32 - 1) for limit in limits)))
    return tuple(entries)
