"""The benchmark runs: every line has figures of every contender that it can have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requires import requires

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@requires("program:runc", "program:crun")
def test_a_quick_run_has_all_lines(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.run", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["figures"] for row in json.loads(results.read_text())["results"]}
    assert len(rows) == 11
    for name, figures in rows.items():
        # What few containers take of memory drowns in what the allocators keep.
        assert name.startswith("memory") or figures["shimd"]["median"] > 0, name
        assert name.startswith("memory") or {"crun", "runc"} <= set(figures), name
