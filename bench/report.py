"""What a run of the benchmark leaves: JSON for programs, a Markdown table for people."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.measure import Row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.json"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table of make bench -->", "<!-- end of the table -->"

# What parts of one container's life may take, in ms: name, the phases of the daemon that make it up, limit.
PHASE_BUDGETS = (
    ("parse, validate, compile", ("read", "compile"), 1.0),
    ("cgroup made", ("cgroup",), 1.0),
    ("clone3 to ready", ("launch", "until ready"), 3.0),
    ("start to execve", ("executed",), 0.8),
)

Phases = Mapping[str, Mapping[str, float]]


def machine(versions: Mapping[str, str], *, quick: bool) -> dict[str, str]:
    """Where and with what it was measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "cgroups": _cgroup_mode(),
        "python": platform.python_version(),
        **versions,
        "load before": f"{os.getloadavg()[0]:.1f}",
        "revision": _git("describe", "--always", "--dirty"),
        **({"rounds": "quick, so the figures mean little"} if quick else {}),
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _cgroup_mode() -> str:
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return "v2"
    return "hybrid" if os.path.exists("/sys/fs/cgroup/unified/cgroup.controllers") else "v1"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(path: Path, where: Mapping[str, str], rows: Sequence[Row], phases: Phases) -> None:
    """As JSON."""
    document = {"machine": where, "results": [row.as_json() for row in rows], "phases_ms": phases}
    path.write_text(json.dumps(document, indent=2) + "\n")


def markdown(where: Mapping[str, str], rows: Sequence[Row], phases: Phases) -> str:
    lines = ["; ".join(f"{name} {value}" for name, value in where.items()) + ".", ""]
    lines += table(rows)
    lines += ["", "CPU time of one operation, all processes together, mean:", ""]
    lines += ["| | shimd | crun | runc |", "| --- | ---: | ---: | ---: |"]
    lines += [_cpu_line(row) for row in rows if "cpu_ms" in row.figures["shimd"]]
    lines += ["", "Inside the daemon, one container over one call:", ""]
    lines += ["| phase | median ms | 90 % |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {f['median']:.2f} | {f['p90']:.2f} |" for name, f in phases.items()]
    lines += ["", "| budget | ms | limit | |", "| --- | ---: | ---: | --- |"]
    lines += [_budget_line(name, parts, limit, phases) for name, parts, limit in PHASE_BUDGETS]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    return [
        "| median | unit | shimd | crun | runc | shimd/crun | shimd/runc | budget |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *map(_table_line, rows),
    ]


def _budget_line(name: str, parts: Sequence[str], limit: float, phases: Phases) -> str:
    """A budget of PHASE_BUDGETS against the sum of its phases' medians."""
    spent = sum(phases[part]["median"] for part in parts if part in phases)
    return f"| {name} | {spent:.2f} | {limit} | {'met' if spent <= limit else 'missed'} |"


def _table_line(row: Row) -> str:
    cells = [row.name, row.unit, *(_number(row.median(who)) for who in ("shimd", "crun", "runc"))]
    cells += [_number(row.ratio(who)) for who in ("crun", "runc")]
    cells.append("; ".join(f"{budget}: {verdict(row, budget)}" for budget in row.budgets))
    return "| " + " | ".join(cells) + " |"


def _cpu_line(row: Row) -> str:
    figures = [row.figures.get(who, {}).get("cpu_ms") for who in ("shimd", "crun", "runc")]
    return "| " + " | ".join([row.name, *(f"{_number(figure)} ms" for figure in figures)]) + " |"


def verdict(row: Row, budget: str) -> str:
    """Of "shimd/crun <= 1.0" (a ratio) or "shimd <= 205" (a figure)."""
    what, _, limit = budget.partition(" <= ")
    value = row.ratio(what.removeprefix("shimd/")) if "/" in what else row.median(what)
    return "met" if value is not None and value <= float(limit) else f"missed ({_number(value)})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def update_document(text: str, begin: str = BEGIN) -> None:
    """Replace what is between the mark ``begin`` and the next end mark."""
    head, _, rest = DOCUMENT.read_text().partition(begin)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(f"{head}{begin}\n{text}\n{END}{tail}")
