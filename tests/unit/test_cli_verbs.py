"""The pure parts of shimrun's verbs: quantities, tables, rows of ps, the document of an update, figures."""

from __future__ import annotations

import pytest

from shimd.cgroups.stats import BlkioEntry, BlkioStats, CpuStats, MemoryEntry, MemoryStats, Pressure, Stats
from shimd.cli.stats import stats_document
from shimd.cli.table import table
from shimd.cli.units import duration, size
from shimd.cli.verbs.ps import rows_of
from shimd.cli.verbs.update import resources_document
from shimd.errors import InvalidArgument, RuntimeFailure


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("100ms", 0.1),
        ("1h2m3.5s", 3723.5),
        ("+1m", 60),
        ("-1s", -1),
        ("0", 0),
        ("-0", 0),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        (".5s", 0.5),
        ("1.s", 1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["9999999h", "1" * 400 + "s", "", "5", "s", "5x", "1s2", "-", ".s", "1.2.3s", "1 s", "5S", "--1s", "1e3s", "٣s"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid duration"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("100", 100),
        ("-1", -1),
        ("32b", 32),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("1k", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("1.5g", 3 << 29),
        ("1 g", 1 << 30),
        ("2TB", 2 << 40),
        ("1p", 1 << 50),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "m", "-2", "-1m", "5x", "1ib", "1  m", "1mm", "1.2.3", "1e3", ".", "1z", "9223372036854775808", "٣"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid size"):
        size(text)


def test_a_table_is_as_wide_as_its_longest_cells() -> None:
    assert table([["ID", "PID", "X"], ["a-rather-long-id", "1", "y"]]) == (
        "ID                 PID         X\na-rather-long-id   1           y\n"
    )


def test_rows_of_ps_are_found_by_the_header() -> None:
    output = "UID PID CMD\nroot 1 init\nroot 12 sh\nroot 2 1\n"
    assert rows_of([12, 1], output) == ["UID PID CMD", "root 1 init", "root 12 sh"]
    assert rows_of([], output) == ["UID PID CMD"]


@pytest.mark.parametrize(
    ("output", "text"), [("CMD\nsh\n", "couldn't find PID"), ("UID PID\nroot\n", "parse"), ("PID\nx\n", "parse")]
)
def test_rows_of_ps_that_cannot_be_read(output: str, text: str) -> None:
    with pytest.raises(RuntimeFailure, match=text):
        rows_of([1], output)


def options(**given: str) -> dict[str, str]:
    names = ("memory", "memory-reservation", "memory-swap", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share")
    more = ("cpu-rt-period", "cpu-rt-runtime", "cpu-idle", "cpuset-cpus", "cpuset-mems")
    return {name: given.get(name.replace("-", "_"), "") for name in (*names, *more)}


def test_options_of_update_become_a_resources_document() -> None:
    assert resources_document(options()) == {}
    given = options(memory="1m", memory_swap="-1", cpu_quota="-1", cpu_idle="0", cpuset_cpus="0-1")
    assert resources_document(given) == {
        "memory": {"limit": 1 << 20, "swap": -1},
        "cpu": {"quota": -1, "idle": 0, "cpus": "0-1"},
    }


@pytest.mark.parametrize("value", ["", "x", "1.5", "0x10", "--1", "1 ", "٣"])
def test_numbers_of_update(value: str) -> None:
    if value == "":
        assert resources_document(options(cpu_share="")) == {}
        return
    with pytest.raises(InvalidArgument, match=r"invalid value for cpu-share"):
        resources_document(options(cpu_share=value))


def test_figures_that_are_zero_are_left_out_where_runc_does() -> None:
    document = stats_document(Stats(version=1))
    assert {name: document[name] for name in ("cpu", "memory", "pids", "blkio", "hugetlb", "intel_rdt")} == {
        name: {} for name in ("cpu", "memory", "pids", "blkio", "hugetlb", "intel_rdt")
    }
    assert document["network_interfaces"] is None
    assert document["cpuset"]["cpu_exclusive"] == 0
    assert "cpus" not in document["cpuset"]


def test_figures_have_the_names_of_runc() -> None:
    stats = Stats(
        version=1,
        cpu=CpuStats(total=5, user=2, percpu=(1, 2), pressure=Pressure()),
        memory=MemoryStats(cache=3, usage=MemoryEntry(usage=1, limit=9), raw={"rss": 7}),
        blkio=BlkioStats(service_bytes=(BlkioEntry(8, 0, "Read", 512),), pressure=Pressure()),
    )
    document = stats_document(stats)
    assert document["cpu"]["usage"] == {"total": 5, "percpu": [1, 2], "kernel": 0, "user": 2}
    assert document["cpu"]["psi"]["some"] == {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    assert document["memory"] == {"cache": 3, "usage": {"limit": 9, "usage": 1, "failcnt": 0}, "raw": {"rss": 7}}
    assert document["blkio"]["ioServiceBytesRecursive"] == [{"major": 8, "op": "Read", "value": 512}]
