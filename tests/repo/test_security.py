"""docs/security.md: the tests that it names exist, and no known attack that a test names is missing."""

from __future__ import annotations

import ast
import functools
import re

from tests.repo.tree import python_files, read

PAGE = "docs/security.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def cves(text: str) -> set[str]:
    """As in prose, and as in the name of a test."""
    return {f"{year}-{number}" for year, number in re.findall(r"cve[-_](\d{4})[-_](\d+)", text, re.IGNORECASE)}


@functools.cache
def functions(name: str) -> frozenset[str]:
    tree = ast.walk(ast.parse(read(name)))
    return frozenset(node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_tests_that_it_names_exist() -> None:
    names = NAMED.findall(read(PAGE))
    assert names
    gone = [f"{file}::{test}" for file, test in names if test not in functions(f"tests/{file}")]
    assert not gone, f"{PAGE} names what is not there:\n  " + "\n  ".join(gone)


def test_every_row_names_a_test() -> None:
    rows = [line for line in read(PAGE).splitlines() if line.startswith("|") and cves(line.split("|")[1])]
    assert rows
    assert [row for row in rows if not NAMED.search(row)] == []


def test_every_cve_of_the_code_and_its_tests_is_there() -> None:
    known = cves(read(PAGE))
    missing = [f"{name}: {cve}" for name in python_files() for cve in sorted(cves(read(name)) - known)]
    assert not missing, f"{PAGE} says nothing of:\n  " + "\n  ".join(missing)
