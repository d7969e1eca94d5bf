"""The scripts that start Python: they find the package from beside themselves, through links too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SCRIPTS = {"shimrun": "--version", "containerd-shim-shimd-v2": "-v"}


def call(program: Path, path: str) -> subprocess.CompletedProcess[str]:
    command, environment = [str(program), SCRIPTS[program.name]], {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(BIN / name)
    done = call(tmp_path / name, "/nonexistent")
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_copy(tmp_path: Path, name: str) -> None:
    """With a Python that has the package it works; else it says what to do."""
    copy = tmp_path / name
    shutil.copy(BIN / name, copy)
    done = call(copy, str(BIN))
    assert done.returncode == 0, done.stderr
    assert name in done.stdout

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    done = call(copy, str(bare))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{copy}: No module named ")
    assert done.stderr.endswith("make a link to it, not a copy\n")
    assert done.stderr.count("\n") == 1
