"""What docs/podman.md tells to type works, with the settings in deploy/podman, as root and as a user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.dockers import IS_RUNC, SHIMRUN
from tests.interop.podman_rig import IMAGE, Podman

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(IS_RUNC, reason="the document is about shimrun")


def test_commands_as_root(podman: Podman) -> None:
    try_commands(podman)


def test_commands_as_user(rootless: Podman) -> None:
    try_commands(rootless)


def try_commands(podman: Podman) -> None:
    podman("rmi", IMAGE)
    commands = re.findall(r"^ {4}(podman .*)$", (ROOT / "docs/podman.md").read_text(), re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        words = command.split()[1:]
        if words[0] == "run":
            words = podman.run_arguments(*words[1:])
        elif words[:2] == ["pod", "create"]:
            words[2:2] = podman.pod_flags()
        podman(*words)


def test_settings_as_root(podman: Podman) -> None:
    check_settings(podman)


def test_settings_as_user(rootless: Podman) -> None:
    check_settings(rootless)


def check_settings(podman: Podman) -> None:
    """All tests with Podman use them: they name the runtime, and Podman gets its errors as JSON."""
    shown = podman("info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}")
    assert shown == f"shimrun {SHIMRUN}"
    failed = podman.attempt("run", "--rm", "--network", "none", IMAGE, "/no/such")
    assert failed.returncode == 127
    assert "level=" not in failed.stderr
