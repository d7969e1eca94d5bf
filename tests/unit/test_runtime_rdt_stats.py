"""What ``events`` tells of Intel RDT, read from a folder that looks like resctrl."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shimd.cgroups.stats import Stats
from shimd.cli.stats import stats_document
from shimd.errors import RuntimeFailure
from shimd.runtime import rdt, rdt_stats

FILES = {
    "info/L3/cbm_mask": "fffff\n",
    "info/L3/min_cbm_bits": "1\n",
    "info/L3/num_closids": "16\n",
    "info/MB/bandwidth_gran": "10\n",
    "info/MB/delay_linear": "1\n",
    "info/MB/min_bandwidth": "10\n",
    "info/MB/num_closids": "8\n",
    "info/L3_MON/mon_features": "llc_occupancy\nmbm_total_bytes\nmbm_total_bytes_config\nmbm_local_bytes\n",
    "schemata": "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n",
    "gold/schemata": "    MB:0= 20;1= 70\n    L3:0=0007f;1=0001f\n",
    "gold/mon_data/mon_L3_01/llc_occupancy": "5\n",
    "gold/mon_data/mon_L3_01/mbm_total_bytes": "18446744073709551615\n",
    "gold/mon_data/mon_L3_01/mbm_local_bytes": "0\n",
    "gold/mon_data/mon_L3_00/llc_occupancy": "1048576\n",
    "gold/mon_data/mon_L3_00/mbm_total_bytes": "3000\n",
    "gold/mon_data/mon_L3_00/mbm_local_bytes": "2000\n",
    "gold/mon_data/mon_PERF_PKG_00/core_energy": "1.5\n",
}
CACHE = {
    "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
    "l3_cache_schema_root": "L3:0=fffff;1=fffff",
    "l3_cache_schema": "L3:0=0007f;1=0001f",
}
BANDWIDTH = {
    "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
    "mem_bw_schema_root": "MB:0=100;1=100",
    "mem_bw_schema": "MB:0= 20;1= 70",
}
SCHEMATA = {"schemata": ["MB:0= 20;1= 70", "    L3:0=0007f;1=0001f"]}
MBM = {
    "mbm_stats": [
        {"mbm_total_bytes": 3000, "mbm_local_bytes": 2000},
        {"mbm_total_bytes": 2**64 - 1, "mbm_local_bytes": 0},
    ]
}
CMT = {"cmt_stats": [{"llc_occupancy": 1048576}, {"llc_occupancy": 5}]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        write(tmp_path / name, text)
    monkeypatch.setattr(rdt, "find_root", lambda: str(tmp_path))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def told(root: Path, *, path: str = "gold", monitoring: str = "") -> dict[str, Any]:
    group = rdt.Group(f"{root}/{path}", f"{root}/{monitoring}" if monitoring else "", owned=False)
    document: dict[str, Any] = stats_document(Stats(version=1), rdt_stats.read(group))["intel_rdt"]
    return document


def test_all_there_is_in_the_order_of_runc(root: Path) -> None:
    assert json.dumps(told(root)) == json.dumps(CACHE | BANDWIDTH | SCHEMATA | MBM | CMT)


def test_a_container_in_no_class(root: Path) -> None:
    assert rdt_stats.read(rdt.NO_GROUP) is None


def test_a_machine_where_resctrl_is_not_mounted_any_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdt, "find_root", lambda: "")
    assert told(root) == {}


@pytest.mark.parametrize(
    ("feature", "rest"),
    [
        ("L3", BANDWIDTH | SCHEMATA | MBM | CMT),
        ("MB", CACHE | SCHEMATA | MBM | CMT),
        ("L3_MON", CACHE | BANDWIDTH | SCHEMATA),
    ],
)
def test_what_the_machine_does_not_have_is_left_out(root: Path, feature: str, rest: dict[str, Any]) -> None:
    """Whatever else is there."""
    shutil.rmtree(root / "info" / feature)
    assert told(root) == rest


@pytest.mark.parametrize("features", ["", "mbm_local_bytes_config\n"])
def test_without_counters_their_directories_are_not_looked_at(root: Path, features: str) -> None:
    (root / "info/L3_MON/mon_features").write_text(features)
    shutil.rmtree(root / "gold/mon_data")
    assert told(root) == CACHE | BANDWIDTH | SCHEMATA


def test_a_list_of_counters_that_cannot_be_read_is_none(root: Path) -> None:
    (root / "info/L3_MON/mon_features").unlink()
    assert told(root) == CACHE | BANDWIDTH | SCHEMATA


def test_only_counters_that_the_machine_has_are_read(root: Path) -> None:
    """The other one of the bandwidth is 0."""
    for counter in root.glob("gold/mon_data/*/*"):
        if counter.name != "mbm_total_bytes":
            counter.unlink()
    (root / "info/L3_MON/mon_features").write_text("mbm_total_bytes\n")
    totals = [{"mbm_total_bytes": 3000, "mbm_local_bytes": 0}, {"mbm_total_bytes": 2**64 - 1, "mbm_local_bytes": 0}]
    assert told(root) == CACHE | BANDWIDTH | SCHEMATA | {"mbm_stats": totals}
    (root / "info/L3_MON/mon_features").write_text("llc_occupancy\n")
    for folder, value in (("mon_L3_00", "1048576\n"), ("mon_L3_01", "5\n")):
        (root / "gold/mon_data" / folder / "llc_occupancy").write_text(value)
    assert told(root) == CACHE | BANDWIDTH | SCHEMATA | CMT


def test_no_cache_that_counts(root: Path) -> None:
    for folder in root.glob("gold/mon_data/mon_L3_*"):
        shutil.rmtree(folder)
    assert told(root) == CACHE | BANDWIDTH | SCHEMATA | {"mbm_stats": None, "cmt_stats": None}


def test_counters_of_a_monitoring_group(root: Path) -> None:
    shutil.copytree(root / "gold/mon_data", root / "gold/mon_groups/c1/mon_data")
    (root / "gold/mon_groups/c1/mon_data/mon_L3_01/llc_occupancy").write_text("6\n")
    assert told(root, monitoring="gold/mon_groups/c1")["cmt_stats"] == [
        {"llc_occupancy": 1048576},
        {"llc_occupancy": 6},
    ]


def test_the_root_class(root: Path) -> None:
    shutil.copytree(root / "gold/mon_data", root / "mon_data")
    document = told(root, path="")
    assert document["l3_cache_schema"] == document["l3_cache_schema_root"] == "L3:0=fffff;1=fffff"
    assert document["cmt_stats"] == CMT["cmt_stats"]


def test_figures_that_are_zero_are_left_out_but_not_counters(root: Path) -> None:
    for path in (*root.glob("info/L3/*"), *root.glob("info/MB/*"), *root.glob("gold/mon_data/mon_L3_*/*")):
        path.write_text("0\n")
    (root / "info/L3/cbm_mask").write_text("\n")
    document = told(root)
    assert (document["l3_cache_info"], document["mem_bw_info"]) == ({}, {})
    assert document["mbm_stats"] == [{"mbm_total_bytes": 0, "mbm_local_bytes": 0}] * 2
    assert document["cmt_stats"] == [{"llc_occupancy": 0}] * 2


def test_limits_without_a_line_are_left_out(root: Path) -> None:
    (root / "gold/schemata").write_text("L2:0=f\n")
    document = told(root)
    assert document["schemata"] == ["L2:0=f"]
    assert "l3_cache_schema" not in document
    assert "mem_bw_schema" not in document
    assert document["l3_cache_schema_root"] == CACHE["l3_cache_schema_root"]
    (root / "gold/schemata").write_text("")
    assert told(root)["schemata"] == [""]


def test_limits_for_code_and_data_apart_and_of_slow_memory(root: Path) -> None:
    (root / "gold/schemata").write_text("    SMBA:0=2048\n      MB:0=1024\n  L3DATA:0=f\n  L3CODE:0=ff\n")
    document = told(root)
    assert document["l3_cache_schema"] == "L3CODE:0=ff"
    assert document["mem_bw_schema"] == "MB:0=1024"


@pytest.mark.parametrize(
    "name",
    [name for name in FILES if name not in ("info/L3_MON/mon_features", "gold/mon_data/mon_PERF_PKG_00/core_energy")],
)
def test_a_file_that_cannot_be_read(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(RuntimeFailure, match=f"^read {root}/{name}: No such file or directory$"):
        told(root)
    (root / name).mkdir()
    with pytest.raises(RuntimeFailure, match=f"^read {root}/{name}: Is a directory$"):
        told(root)


def test_a_class_without_counters(root: Path) -> None:
    shutil.rmtree(root / "gold/mon_data")
    with pytest.raises(RuntimeFailure, match=f"^read {root}/gold/mon_data: No such file or directory$"):
        told(root)


@pytest.mark.parametrize("text", ["Unavailable", "Error", "Unassigned", "", "1 2", "-1", "1_0", "0x1", "٣"])
@pytest.mark.parametrize(
    "name", ["info/L3/num_closids", "info/MB/delay_linear", "gold/mon_data/mon_L3_00/llc_occupancy"]
)
def test_a_figure_that_is_not_a_number(root: Path, name: str, text: str) -> None:
    """The words are the kernel's, for counters that it cannot read at the moment."""
    (root / name).write_text(f"{text}\n")
    with pytest.raises(RuntimeFailure, match=f'^read {root}/{name}: "{text}" is not a number$'):
        told(root)
