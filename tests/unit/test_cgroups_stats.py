from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shimd.cgroups import stats_v1, stats_v2
from shimd.cgroups.files import Directory
from shimd.cgroups.stats import (
    NO_LIMIT,
    BlkioEntry,
    Burst,
    HugetlbStats,
    IoDevice,
    MemoryEntry,
    MiscEntry,
    NumaNodes,
    Pressure,
    Psi,
    RdmaEntry,
    Throttling,
    id_list,
    key_values,
    number,
    pressure,
    rdma_entries,
)

Folder = Callable[[dict[str, str]], Directory]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A directory with these files in place of a cgroup."""
    opened: list[Directory] = []

    def make(files: dict[str, str]) -> Directory:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        opened.append(Directory(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), str(tmp_path)))
        return opened[-1]

    yield make
    for directory in opened:
        directory.close()


def test_number() -> None:
    assert number("12\n") == 12
    assert number("max\n") == NO_LIMIT
    assert number("") == 0
    assert number("-5\n") == 0


def test_key_values() -> None:
    assert key_values("a 1\nb 22\nnonsense\nc x\nd -3\n") == {"a": 1, "b": 22, "d": 0}


@pytest.mark.parametrize(("text", "ids"), [("", ()), ("\n", ()), ("0\n", (0,)), ("0-2,7,9-10\n", (0, 1, 2, 7, 9, 10))])
def test_id_list(text: str, ids: tuple[int, ...]) -> None:
    assert id_list(text) == ids


def test_pressure() -> None:
    text = "some avg10=1.50 avg60=0.70 avg300=0.10 total=4242\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    assert pressure(text) == Pressure(Psi(1.5, 0.7, 0.1, 4242), Psi(0, 0, 0, 7))
    assert pressure("") is None


def test_rdma() -> None:
    text = "mlx4_0 hca_handle=2 hca_object=max\nocrdma1 hca_handle=3 hca_object=10000\n"
    assert rdma_entries(text) == (RdmaEntry("mlx4_0", 2, 2**32 - 1), RdmaEntry("ocrdma1", 3, 10000))


def test_blkio_table() -> None:
    text = "8:0 Read 100\n8:0 Write 200\n8:0 Total 300\nTotal 300\n8:16 7\n"
    assert stats_v1.blkio_table(text) == (
        BlkioEntry(8, 0, "Read", 100),
        BlkioEntry(8, 0, "Write", 200),
        BlkioEntry(8, 0, "Total", 300),
        BlkioEntry(8, 16, "", 7),
    )


def test_cpuacct_usage_all() -> None:
    assert stats_v1.usage_all("cpu user system\n0 11 22\n1 33 44\n") == ((11, 33), (22, 44))
    assert stats_v1.usage_all("") == ((), ())


def test_numa_of_v1() -> None:
    alone, below = stats_v1.numa_stat(
        "total=44 N0=32 N1=12\nfile=4 N0=4 N1=0\nanon=40 N0=28 N1=12\nunevictable=0 N0=0 N1=0\n"
        "hierarchical_total=88 N0=64 N1=24\n"
    )
    assert alone.total == NumaNodes(44, {0: 32, 1: 12})
    assert alone.anon == NumaNodes(40, {0: 28, 1: 12})
    assert below.total == NumaNodes(88, {0: 64, 1: 24})
    assert below.file == NumaNodes()


class TestV2:
    def test_empty_cgroup(self, folder: Folder) -> None:
        found = stats_v2.read(folder({}))
        assert found.version == 2
        assert found.memory.usage == MemoryEntry()
        assert found.cpu.pressure is None
        assert found.hugetlb == {}

    def test_cpu(self, folder: Folder) -> None:
        text = "usage_usec 10\nuser_usec 4\nsystem_usec 6\nnr_periods 3\nnr_throttled 2\nthrottled_usec 5\n"
        cpu = stats_v2.read(folder({"cpu.stat": text + "nr_bursts 1\nburst_usec 9\n"})).cpu
        assert (cpu.total, cpu.user, cpu.kernel) == (10000, 4000, 6000)
        assert cpu.throttling == Throttling(3, 2, 5000)
        assert cpu.burst == Burst(1, 9000)

    def test_memory_and_swap_are_summed_as_on_v1(self, folder: Folder) -> None:
        files = {
            "memory.current": "100\n",
            "memory.max": "1000\n",
            "memory.peak": "150\n",
            "memory.swap.current": "10\n",
            "memory.swap.max": "50\n",
            "memory.stat": "anon 60\nfile 40\n",
            "memory.events": "low 0\noom 1\noom_kill 2\n",
        }
        memory = stats_v2.read(folder(files)).memory
        assert memory.usage == MemoryEntry(usage=100, max=150, limit=1000)
        assert memory.swap_only == MemoryEntry(usage=10, limit=50)
        assert memory.swap == MemoryEntry(usage=110, limit=1050)
        assert memory.cache == 40
        assert memory.oom_kill == 2
        assert memory.events["oom"] == 1

    def test_unlimited_swap_stays_unlimited(self, folder: Folder) -> None:
        files = {"memory.current": "1\n", "memory.max": "9\n", "memory.swap.current": "0\n", "memory.swap.max": "max\n"}
        assert stats_v2.read(folder(files)).memory.swap.limit == NO_LIMIT

    def test_pids_without_limit(self, folder: Folder) -> None:
        assert stats_v2.read(folder({"pids.current": "3\n", "pids.max": "max\n"})).pids == (3, 0)

    def test_io(self, folder: Folder) -> None:
        text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n254:0\n(unknown) rbytes=9\n"
        blkio = stats_v2.read(folder({"io.stat": text})).blkio
        assert blkio.devices == (IoDevice(8, 0, 1, 2, 3, 4, 5, 6),)
        assert blkio.service_bytes == (BlkioEntry(8, 0, "Read", 1), BlkioEntry(8, 0, "Write", 2))
        assert blkio.serviced == (BlkioEntry(8, 0, "Read", 3), BlkioEntry(8, 0, "Write", 4))

    def test_hugetlb_prefers_reservations(self, folder: Folder) -> None:
        files = {
            "hugetlb.2MB.current": "1\n",
            "hugetlb.2MB.rsvd.current": "2\n",
            "hugetlb.2MB.events": "max 3\n",
            "hugetlb.1GB.current": "4\n",
        }
        assert stats_v2.read(folder(files)).hugetlb == {
            "2MB": HugetlbStats(usage=2, failcnt=3),
            "1GB": HugetlbStats(usage=4),
        }

    def test_misc(self) -> None:
        assert stats_v2.misc("res_a 3\nres_b 4\n", "res_a.max 1\n") == {"res_a": MiscEntry(3, 1), "res_b": MiscEntry(4)}

    def test_numa(self) -> None:
        found = stats_v2.numa("anon N0=4096 N1=0\nfile N0=1 N1=2\n")
        assert found.anon == NumaNodes(4096, {0: 4096, 1: 0})
        assert found.file.total == 3
