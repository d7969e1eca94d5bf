"""What resctrl tells of a container's class and counts for it; names and order are those of runc's types/events.go."""

from __future__ import annotations

import os

from shimd.errors import RuntimeFailure
from shimd.records import Record
from shimd.runtime import rdt


class CacheInfo(Record):
    cbm_mask: str
    min_cbm_bits: int
    num_closids: int


class BandwidthInfo(Record):
    bandwidth_gran: int
    delay_linear: int
    min_bandwidth: int
    num_closids: int


class Bandwidth(Record):
    """Of one cache, since its counters began."""

    mbm_total_bytes: int
    mbm_local_bytes: int


class Occupancy(Record):
    llc_occupancy: int


class RdtStats(Record):
    """None and "" stand for what this machine does not have. ``*_schema_root`` are the limits of those in no class,
    ``*_schema`` and ``schemata`` those of the container's class. ``*_stats`` have an entry for each cache.
    """

    l3_cache_info: CacheInfo | None
    l3_cache_schema_root: str
    l3_cache_schema: str
    mem_bw_info: BandwidthInfo | None
    mem_bw_schema_root: str
    mem_bw_schema: str
    schemata: tuple[str, ...]
    mbm_stats: tuple[Bandwidth, ...] | None
    cmt_stats: tuple[Occupancy, ...] | None


def read(group: rdt.Group) -> RdtStats | None:
    """None for a container in no class, or when resctrl is not mounted any more. Raises RuntimeFailure."""
    root = rdt.find_root() if group.path else ""
    if not root:
        return None
    root_lines, lines = _lines(root), _lines(group.path)
    has_cache, has_bandwidth = (os.path.isdir(f"{root}/info/{feature}") for feature in ("L3", "MB"))
    bandwidth, occupancy = _counts(root, group)
    return RdtStats(
        l3_cache_info=_cache_info(f"{root}/info/L3") if has_cache else None,
        l3_cache_schema_root=_line_of("L3", root_lines) if has_cache else "",
        l3_cache_schema=_line_of("L3", lines) if has_cache else "",
        mem_bw_info=_bandwidth_info(f"{root}/info/MB") if has_bandwidth else None,
        mem_bw_schema_root=_line_of("MB", root_lines) if has_bandwidth else "",
        mem_bw_schema=_line_of("MB", lines) if has_bandwidth else "",
        schemata=lines,
        mbm_stats=bandwidth,
        cmt_stats=occupancy,
    )


def _lines(folder: str) -> tuple[str, ...]:
    return tuple(_text(f"{folder}/schemata").split("\n"))


def _line_of(resource: str, lines: tuple[str, ...]) -> str:
    """The last one: a cache that has limits for code and data apart has two, L3CODE and L3DATA."""
    found = ""
    for line in lines:
        if line.strip().startswith(resource):
            found = line.strip()
    return found


def _cache_info(folder: str) -> CacheInfo:
    numbers = (_number(f"{folder}/{name}") for name in ("min_cbm_bits", "num_closids"))
    return CacheInfo(_text(f"{folder}/cbm_mask"), *numbers)


def _bandwidth_info(folder: str) -> BandwidthInfo:
    return BandwidthInfo(*(_number(f"{folder}/{name}") for name in BandwidthInfo._fields))


def _counts(root: str, group: rdt.Group) -> tuple[tuple[Bandwidth, ...] | None, tuple[Occupancy, ...] | None]:
    counters = _counters(root)
    has_bandwidth, has_occupancy = not counters.isdisjoint(Bandwidth._fields), "llc_occupancy" in counters
    if not (has_bandwidth or has_occupancy):
        return None, None
    bandwidth, occupancy = [], []
    for folder in _caches(f"{group.monitoring or group.path}/mon_data"):
        total, local, occupied = (
            _number(f"{folder}/{name}") if name in counters else 0
            for name in ("mbm_total_bytes", "mbm_local_bytes", "llc_occupancy")
        )
        bandwidth.append(Bandwidth(total, local))
        occupancy.append(Occupancy(occupied))
    return tuple(bandwidth) if has_bandwidth else None, tuple(occupancy) if has_occupancy else None


def _counters(root: str) -> set[str]:
    try:
        with open(f"{root}/info/L3_MON/mon_features", encoding="utf-8", errors="replace") as file:
            return set(file.read().split())
    except OSError:  # nothing is counted
        return set()


def _caches(data: str) -> list[str]:
    """``mon_data`` also has directories of what is counted elsewhere than at a cache."""
    try:
        names = sorted(name for name in os.listdir(data) if name.startswith("mon_L3_"))
    except OSError as error:
        raise RuntimeFailure(f"read {data}: {error.strerror}") from error
    return [f"{data}/{name}" for name in names]


def _number(path: str) -> int:
    """A counter that the hardware cannot read at the moment says so in a word."""
    text = _text(path)
    if not (text.isascii() and text.isdecimal()):
        raise RuntimeFailure(f'read {path}: "{text}" is not a number')
    return int(text)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        raise RuntimeFailure(f"read {path}: {error.strerror}") from error
