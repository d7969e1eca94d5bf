"""The files of this repository, as the tests of it see them."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = "shimd/api/"


@functools.cache
def files() -> tuple[str, ...]:
    """Every file that is or could be committed, relative to ROOT; not what .gitignore excludes."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(sorted(name for name in set(names) if name and (ROOT / name).is_file()))


def python_files() -> list[str]:
    """Those that people write."""
    return [name for name in files() if name.endswith(".py") and not name.startswith(GENERATED)]


def shell_scripts() -> list[str]:
    """By their first line, as the kernel tells them."""

    def is_shell(name: str) -> bool:
        with open(ROOT / name, "rb") as file:
            first = file.readline(80)
        return first.startswith(b"#!") and first.rstrip().endswith((b"sh", b"bash"))

    return [name for name in files() if is_shell(name)]


def markdown_files() -> list[str]:
    return [name for name in files() if name.endswith(".md")]


def read(name: str) -> str:
    return (ROOT / name).read_text()
