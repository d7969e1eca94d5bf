"""Each linter is an ordinary test: one command for people and for CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.tree import ROOT, shell_scripts
from tests.support.requires import requires

BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}:\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run(f"{BIN}/ruff", "check", "--no-cache")


def test_files_are_formatted() -> None:
    run(f"{BIN}/ruff", "format", "--check", "--no-cache")


@pytest.mark.timeout(600)
def test_types_hold() -> None:
    run(f"{BIN}/mypy")


@requires("program:shellcheck")
def test_shell_scripts_are_sound() -> None:
    run("shellcheck", *shell_scripts())
