"""The comparison under containerd runs: every line has figures of every contender."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containerd import peers
from tests.support.requires import requires

ROOT = Path(__file__).parents[2]
PROCESS_KIB = 1024  # less than a shim takes


@pytest.mark.slow
@requires("program:runc", "program:crun")
@pytest.mark.skipif(bool(peers.find("1.6").missing), reason=peers.find("1.6").missing)
def test_a_quick_run_has_all_lines(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.containerd", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["figures"] for row in json.loads(results.read_text())["results"]}
    assert len(rows) == 6
    memory = rows["memory of shims per idle container"]
    # A daemon and its keeper, or a shim for each container. What few containers add to a daemon drowns in what the
    # allocators keep, or is less than what they give back.
    assert all(each["all"] > PROCESS_KIB for each in memory.values())
    assert abs(memory["shimd"].pop("median")) < PROCESS_KIB
    for name, figures in rows.items():
        assert set(figures) == {"shimd", "crun", "runc"}, name
        assert all(each.get("median", 1) > 0 for each in figures.values()), name
