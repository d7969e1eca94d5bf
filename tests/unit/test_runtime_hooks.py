"""Hooks of the runtime's own namespaces, run for real with a shell."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from shimd.errors import RuntimeFailure
from shimd.plan.ops import HookSpec
from shimd.runtime.hooks import run_hooks, run_hooks_through

STATE = json.dumps({"id": "c1", "pid": 1}).encode()


def shell(script: str, *, env: tuple[str, ...] = (), timeout: int = 0) -> HookSpec:
    return HookSpec("/bin/sh", ("sh", "-c", script), env, timeout)


def test_a_hook_gets_the_state_its_environment_and_the_bundle_as_cwd(tmp_path: Path) -> None:
    script = "cat > state; /usr/bin/env > env; pwd > cwd"
    run_hooks("prestart", [shell(script, env=("A=1", "B=x=y"))], STATE, cwd=str(tmp_path))
    assert (tmp_path / "state").read_bytes() == STATE
    environment = set((tmp_path / "env").read_text().split())
    assert {"A=1", "B=x=y"} <= environment
    assert not any(line.startswith(("HOME=", "PATH=")) for line in environment)  # the shell adds PWD and its like
    assert (tmp_path / "cwd").read_text().strip() == str(tmp_path)


def test_hooks_run_in_order_and_stop_at_the_first_failure(tmp_path: Path) -> None:
    hooks = [shell("echo 0 >> log"), shell("echo out; echo err >&2; exit 3"), shell("echo 2 >> log")]
    with pytest.raises(RuntimeFailure) as caught:
        run_hooks("createRuntime", hooks, STATE, cwd=str(tmp_path))
    assert str(caught.value) == (
        "error running createRuntime hook #1: /bin/sh: exit status 3, stdout: out, stderr: err"
    )
    assert (tmp_path / "log").read_text() == "0\n"


def test_poststop_hooks_all_run_and_failures_are_collected(tmp_path: Path) -> None:
    errors = run_hooks_through("poststop", [shell("exit 1"), shell("echo 1 >> log")], STATE, cwd=str(tmp_path))
    assert len(errors) == 1
    assert errors[0].startswith("error running poststop hook #0: /bin/sh: exit status 1")
    assert (tmp_path / "log").read_text() == "1\n"


def test_a_hung_hook_is_killed_with_its_children_at_its_timeout(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeFailure, match="timed out after 1 s, stdout: before"):
        run_hooks("poststart", [shell("echo before; sleep 100 & wait", timeout=1)], STATE, cwd=str(tmp_path))
    assert time.monotonic() - began < 10


def test_a_hook_that_leaves_a_child_with_its_output_open_does_not_hold_us(tmp_path: Path) -> None:
    run_hooks("prestart", [shell("sleep 100 & echo $! > pid")], STATE, cwd=str(tmp_path))
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_much_output_neither_blocks_nor_fills_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        run_hooks(
            "prestart", [shell("yes | head -c 3000000; exit 1", env=("PATH=/bin:/usr/bin",))], STATE, cwd=str(tmp_path)
        )
    assert len(str(caught.value)) < 20_000


def test_a_hook_killed_by_a_signal_says_which(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="signal: SIGTERM"):
        run_hooks("prestart", [shell("kill -TERM $$")], STATE, cwd=str(tmp_path))


def test_a_missing_hook_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="error running prestart hook #0: /nonexistent: No such file or directory"):
        run_hooks("prestart", [HookSpec("/nonexistent", (), (), 0)], STATE, cwd=str(tmp_path))
