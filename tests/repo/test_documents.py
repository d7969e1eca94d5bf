"""What the documents promise exists: files, headings, make targets, programs and their commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.tree import ROOT, markdown_files, read

BIN = Path(sys.executable).parent


def links(name: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", read(name))


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", markdown_files())
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in links(name):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


def targets() -> set[str]:
    """The names that make can be asked for."""
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


def test_make_alone_lists_every_target() -> None:
    text = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^ *make ([a-z-]+) +\S", text, re.MULTILINE))
    assert listed == targets()


def commands(name: str) -> Iterator[list[str]]:
    """Command lines of a document: indented or fenced lines, and code within a sentence."""
    for line in re.findall(r"^(?: {4}|\$ )(\S.*)$|`([^`\n]+)`", read(name), re.MULTILINE):
        words = "".join(line).removeprefix("$ ").split()
        if words:
            yield words


@pytest.mark.parametrize("name", markdown_files())
def test_commands_exist(name: str) -> None:
    programs = tomllib.loads(read("pyproject.toml"))["project"]["scripts"]
    for words in commands(name):
        if words[0] == "make":
            asked = {word for word in words[1:] if re.fullmatch("[a-z-]+", word)}
            assert asked <= targets(), f"{' '.join(words)}: no such target"
        elif words[0] == "shimctl" and len(words) > 1 and re.fullmatch("[a-z]+", words[1]):
            assert words[1] in shimctl_commands(), f"{' '.join(words)}: no such command"
        elif "/" in words[0] and words[0].split("/")[0] in ("tests", "tools", "deploy", "bench", ".ci"):
            assert (ROOT / words[0]).exists() or is_made(words[0]), f"no {words[0]}"
    assert "shimd" in programs


def is_made(name: str) -> bool:
    """By one of the commands, so that git ignores it."""
    return subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False).returncode == 0


def shimctl_commands() -> set[str]:
    text = subprocess.run([f"{BIN}/shimctl", "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^ +([a-z]+)  ", text, re.MULTILINE))


def test_every_console_script_can_be_loaded() -> None:
    for name, entry in tomllib.loads(read("pyproject.toml"))["project"]["scripts"].items():
        module, _, function = entry.partition(":")
        program = f"import {module}; assert callable({module}.{function})"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
