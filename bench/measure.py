"""Samples, medians, and what the kernel tells of a process's time and memory."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Sample(NamedTuple):
    """One measurement: wall-clock seconds, CPU seconds of everything involved but the caller, bytes read."""

    seconds: float
    cpu: float = 0.0
    bytes: int = 0


class Row(NamedTuple):
    """One line of the result: the figures of each contender, in ``unit``."""

    name: str
    unit: str
    figures: Mapping[str, Mapping[str, float]]
    budgets: Sequence[str] = ()
    lower_is_better: bool = True

    def median(self, contender: str) -> float | None:
        figures = self.figures.get(contender)
        return figures["median"] if figures else None

    def ratio(self, contender: str) -> float | None:
        ours, theirs = self.median("shimd"), self.median(contender)
        return ours / theirs if ours is not None and theirs else None

    def as_json(self) -> dict[str, Any]:
        ratios = {f"shimd/{name}": self.ratio(name) for name in self.figures if name != "shimd"}
        return {
            "name": self.name,
            "unit": self.unit,
            "figures": self.figures,
            "ratios": ratios,
            "budgets": self.budgets,
        }


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, 90th percentile, least and number of the values."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p90": ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))],
        "min": ordered[0],
        "n": len(ordered),
    }


def turns(contenders: Iterable[_T], rounds: int) -> Iterator[_T]:
    """Each of them once in each round, in an order drawn anew (the same in every run of the benchmark).

    What a container leaves to the kernel helps or hinders whoever comes next: a write to ``cgroup.procs`` waits for
    an RCU grace period, some 10 ms, unless somebody wrote one just before; network namespaces are taken apart behind
    the back of all. In a fixed order that would always be the gain or the loss of the same one.
    """
    order = list(contenders)
    generator = random.Random(rounds)
    for _ in range(rounds):
        generator.shuffle(order)
        yield from order


def cpu_seconds(pid: int) -> float:
    """CPU time of the living threads of a process, to the nanosecond; what its children used is not in it."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def memory_kib(pid: int) -> dict[str, int]:
    """Proportional set size, private memory (clean and dirty) and the dirty part of it, which is no copy of a file that
    the next process to map it would share; of a process, in KiB.
    """
    fields: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file.readlines()[1:]:
            name, value = line.split(":")
            fields[name] = int(value.split()[0])
    dirty = fields["Private_Dirty"]
    return {"pss": fields["Pss"], "private": fields["Private_Clean"] + dirty, "dirty": dirty}
