"""The figures that ``events`` prints, in the form of runc's types/events.go: what is zero is left out where Go's
encoder does so there.
"""

from __future__ import annotations

from shimd.cgroups.stats import BlkioEntry, CpuStats, HugetlbStats, MemoryEntry, MemoryStats, Pressure, Psi, Stats
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.runtime.rdt_stats import RdtStats

_BLKIO = (
    ("ioServiceBytesRecursive", "service_bytes"),
    ("ioServicedRecursive", "serviced"),
    ("ioQueueRecursive", "queued"),
    ("ioServiceTimeRecursive", "service_time"),
    ("ioWaitTimeRecursive", "wait_time"),
    ("ioMergedRecursive", "merged"),
    ("ioTimeRecursive", "time"),
    ("sectorsRecursive", "sectors"),
)


def stats_document(stats: Stats, rdt: RdtStats | None = None) -> dict[str, Any]:
    """The ``data`` of a stats event. Containers of the specification have no interfaces that runc knows of."""
    cpuset = stats.cpuset._asdict()
    return {
        "cpu": _cpu(stats.cpu),
        "cpuset": {
            name: list(value) if isinstance(value, tuple) else value for name, value in cpuset.items() if value != ()
        },
        "memory": _memory(stats.memory),
        "pids": _given(stats.pids._asdict()),
        "blkio": _given(
            {name: [_blkio(entry) for entry in getattr(stats.blkio, field)] for name, field in _BLKIO}
            | _pressure(stats.blkio.pressure)
        ),
        "hugetlb": {size: _hugetlb(usage) for size, usage in stats.hugetlb.items()},
        "intel_rdt": _intel_rdt(rdt) if rdt is not None else {},
        "network_interfaces": None,
    }


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value not in (0, "", [], {}, None)}


def _cpu(cpu: CpuStats) -> dict[str, Any]:
    usage = {"total": cpu.total, "percpu": list(cpu.percpu)}
    usage |= {"percpu_kernel": list(cpu.percpu_kernel), "percpu_user": list(cpu.percpu_user)}
    times = {"kernel": cpu.kernel, "user": cpu.user}
    throttling = {
        "periods": cpu.throttling.periods,
        "throttledPeriods": cpu.throttling.throttled_periods,
        "throttledTime": cpu.throttling.throttled_time,
    }
    given = _given(usage)
    return _given(
        {"usage": given | times if given or any(times.values()) else {}, "throttling": _given(throttling)}
        | _pressure(cpu.pressure)
    )


def _memory(memory: MemoryStats) -> dict[str, Any]:
    entries = {
        "usage": _entry(memory.usage),
        "swap": _entry(memory.swap),
        "kernel": _entry(memory.kernel),
        "kernelTCP": _entry(memory.kernel_tcp),
    }
    return _given({"cache": memory.cache, **entries, "raw": dict(memory.raw)} | _pressure(memory.pressure))


def _entry(entry: MemoryEntry) -> dict[str, int]:
    if not any(entry):
        return {}
    return {
        "limit": entry.limit,
        **_given({"usage": entry.usage, "max": entry.max}),
        "failcnt": entry.failcnt,
    }


def _blkio(entry: BlkioEntry) -> dict[str, Any]:
    return _given(entry._asdict())


def _hugetlb(usage: HugetlbStats) -> dict[str, int]:
    return {**_given({"usage": usage.usage, "max": usage.max}), "failcnt": usage.failcnt}


def _pressure(pressure: Pressure | None) -> dict[str, Any]:
    return {"psi": {"some": _psi(pressure.some), "full": _psi(pressure.full)}} if pressure is not None else {}


def _psi(psi: Psi) -> dict[str, float]:
    return dict(psi._asdict())


def _intel_rdt(rdt: RdtStats) -> dict[str, Any]:
    """Runc has pointers to the lists of counters: an empty one is null there, and one that is missing is left out."""
    document: dict[str, Any] = {}
    for name, value in rdt._asdict().items():
        if name.endswith("_info") and value is not None:
            document[name] = _given(value._asdict())
        elif name.endswith("_stats") and value is not None:
            document[name] = [entry._asdict() for entry in value] or None
        elif value:
            document[name] = list(value) if isinstance(value, tuple) else value
    return document
