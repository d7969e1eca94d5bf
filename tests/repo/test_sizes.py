"""A file splits at 600 lines; a function that needs more than 60 says why on its first line: ``# long: reason``."""

from __future__ import annotations

import ast
import re

from tests.repo.tree import python_files, read

MAX_FILE = 600
MAX_FUNCTION = 60


def test_files_are_short() -> None:
    lengths = {name: len(read(name).splitlines()) for name in python_files()}
    long = {name: length for name, length in lengths.items() if length > MAX_FILE}
    assert not long, f"over {MAX_FILE} lines: {long}"


def test_functions_are_short() -> None:
    long = []
    for name in python_files():
        source = read(name)
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION and not re.search(r"# long: \w", lines[node.lineno - 1]):
                    long.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    assert not long, f"over {MAX_FUNCTION} lines without a reason:\n  " + "\n  ".join(long)
