"""The benchmark runs: every line has figures of every contender that it can have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requires import requires

ROOT = Path(__file__).parents[2]
INTERPRETER_KIB = 4096  # less than any takes


@pytest.mark.slow
@requires("program:runc", "program:crun")
def test_a_quick_run_has_all_lines(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.run", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["figures"] for row in json.loads(results.read_text())["results"]}
    memory = rows.pop("memory per idle container")["shimd"]
    # Two interpreters with what they have loaded, and what is no process for each container. What few containers add
    # drowns in what the allocators keep, or is less than what they give back.
    assert memory["base_pss"] > INTERPRETER_KIB
    assert max(abs(memory["median"]), abs(memory["private"])) < INTERPRETER_KIB
    assert len(rows) == 10
    for name, figures in rows.items():
        assert {"shimd", "crun", "runc"} <= set(figures), name
        assert all(each["median"] > 0 for each in figures.values()), name
