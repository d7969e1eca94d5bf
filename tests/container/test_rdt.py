"""Intel RDT through the command line, on a machine without it: a folder plays resctrl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import NEWER, Answer, Box

# In a mount namespace. Runc 1.1 believes only a CPU that has the flags, later ones want a directory in /sys/fs.
SCRIPT = """set -e
mount --make-rprivate /
mkdir -p "$PLACE/fs/cgroup" "$PLACE/fs/resctrl"
mount --rbind /sys/fs/cgroup "$PLACE/fs/cgroup"
mount --rbind "$PLACE/fs" /sys/fs
sed 's/^flags.*/& cat_l3 mba cqm_mbm_total cqm_mbm_local cqm_occup_llc/' /proc/cpuinfo > "$PLACE/cpuinfo"
mount --bind "$PLACE/cpuinfo" /proc/cpuinfo
(cat /proc/self/mountinfo; echo "9999 1 0:99 / $PLACE/resctrl rw - resctrl resctrl rw") > "$PLACE/mountinfo"
mount --bind "$PLACE/mountinfo" /proc/$$/mountinfo
mount --bind "$PLACE/mountinfo" /proc/$$/task/$$/mountinfo
GOMAXPROCS=1 exec "$@"
"""
FILES = {
    "info/L3/cbm_mask": "fffff",
    "info/L3/min_cbm_bits": "1",
    "info/L3/num_closids": "16",
    "info/MB/bandwidth_gran": "10",
    "info/MB/delay_linear": "0",
    "info/MB/min_bandwidth": "10",
    "info/MB/num_closids": "8",
    "info/L3_MON/mon_features": "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes",
    "schemata": "    MB:0=100;1=100\n    L3:0=fffff;1=fffff",
    "gold/schemata": "    MB:0= 20;1= 70\n    L3:0=0007f;1=0001f",
    "gold/tasks": "",
    "gold/mon_data/mon_L3_01/llc_occupancy": "0",
    "gold/mon_data/mon_L3_01/mbm_total_bytes": "0",
    "gold/mon_data/mon_L3_01/mbm_local_bytes": "0",
    "gold/mon_data/mon_L3_00/llc_occupancy": "1048576",
    "gold/mon_data/mon_L3_00/mbm_total_bytes": "3000",
    "gold/mon_data/mon_L3_00/mbm_local_bytes": "2000",
}
FIGURES = {
    "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
    "l3_cache_schema_root": "L3:0=fffff;1=fffff",
    "l3_cache_schema": "L3:0=0007f;1=0001f",
    "mem_bw_info": {"bandwidth_gran": 10, "min_bandwidth": 10, "num_closids": 8},
    "mem_bw_schema_root": "MB:0=100;1=100",
    "mem_bw_schema": "MB:0= 20;1= 70",
    "schemata": ["MB:0= 20;1= 70", "    L3:0=0007f;1=0001f"],
    "mbm_stats": [
        {"mbm_total_bytes": 3000, "mbm_local_bytes": 2000},
        {"mbm_total_bytes": 0, "mbm_local_bytes": 0},
    ],
    "cmt_stats": [{"llc_occupancy": 1048576}, {"llc_occupancy": 0}],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "resctrl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if text else "")
    return tmp_path / "resctrl"


def command(box: Box, root: Path) -> list[str]:
    """The runtime where ``root`` is resctrl's."""
    return ["env", f"PLACE={root.parent}", "unshare", "--mount", "sh", "-c", SCRIPT, "sh", *box.runtime.command]


def call(box: Box, root: Path, *args: str) -> Answer:
    return box.runtime.run(*args, command=command(box, root))


def create(box: Box, root: Path) -> None:
    box.write()
    answer = call(box, root, "create", "--bundle", str(box.bundle), box.id)
    assert (answer.code, answer.errors) == (0, ""), answer


def figures(box: Box, root: Path) -> dict[str, Any]:
    answer = call(box, root, "events", "--stats", box.id)
    assert (answer.code, answer.errors) == (0, ""), answer
    document: dict[str, Any] = json.loads(answer.output)["data"]["intel_rdt"]
    return document


@NEWER
def test_events_tells_of_the_class(box: Box, root: Path) -> None:
    box.spec["linux"]["intelRdt"] = {"closID": "gold"}
    create(box, root)
    assert json.dumps(figures(box, root)) == json.dumps(FIGURES)


def test_events_without_a_class(box: Box, root: Path) -> None:
    create(box, root)
    assert figures(box, root) == {}


def test_events_when_resctrl_is_gone(box: Box, root: Path) -> None:
    box.spec["linux"]["intelRdt"] = {"closID": "gold"}
    create(box, root)
    assert json.loads(box.runtime("events", "--stats", box.id))["data"]["intel_rdt"] == {}


def test_events_fails_with_a_counter_that_cannot_be_read(box: Box, root: Path) -> None:
    box.spec["linux"]["intelRdt"] = {"closID": "gold"}
    create(box, root)
    counter = root / "gold/mon_data/mon_L3_01/mbm_local_bytes"
    counter.write_text("Unavailable\n")
    answer = call(box, root, "events", "--stats", box.id)
    assert (answer.code, answer.output) == (1, "")
    assert str(counter) in answer.errors
    assert "Unavailable" in answer.errors


def test_events_goes_on_after_a_counter_that_could_not_be_read(box: Box, root: Path) -> None:
    box.spec["linux"]["intelRdt"] = {"closID": "gold"}
    create(box, root)
    counter = root / "gold/mon_data/mon_L3_00/llc_occupancy"
    counter.write_text("Unavailable\n")
    following = [*command(box, root), "events", "--interval", "50ms", box.id]
    with subprocess.Popen(following, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert str(counter) in running.stderr.readline()
        counter.write_text("7\n")
        event = json.loads(running.stdout.readline())
        box.runtime("delete", "--force", box.id)
        running.communicate()
    assert event["data"]["intel_rdt"]["cmt_stats"][0] == {"llc_occupancy": 7}
    assert running.returncode == 0
