"""What a call of shimrun loads: each module takes time, and a call has little of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {
    "argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "hashlib",
    "importlib", "inspect", "json", "logging", "re", "resource", "signal", "subprocess", "tempfile", "threading",
    "traceback", "types", "typing", "warnings",
}  # fmt: skip

# What the verb itself loads late, too.
VERBS = {
    "create": ("shimd.cli.start", "shimd.runtime.creating"),
    "run": ("shimd.cli.start", "shimd.cli.foreground", "shimd.runtime.creating", "shimd.runtime.deleting"),
    "start": ("shimd.cli.start", "shimd.runtime.starting"),
    "exec": ("shimd.cli.start", "shimd.runtime.execing"),
    "kill": ("shimd.cli.start",),
    "state": ("shimd.cli.start",),
    "delete": ("shimd.cli.start", "shimd.runtime.deleting"),
}
SMALL = {"state": 105, "kill": 105}  # modules at most, the interpreter's own included


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_loads_nothing_slow(verb: str) -> None:
    modules = ("shimd.cli.main", "shimd.cli.program", f"shimd.cli.verbs.{verb}", *VERBS[verb])
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path += {sys.path}; {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    loaded = done.stdout.split()
    assert SLOW & set(loaded) == set()
    assert len(loaded) <= SMALL.get(verb, 200), len(loaded)
