"""The launcher's other forms of answering, each with the containerds that understand it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.containerd import image
from tests.containerd.rig import IS_RUNC, LAUNCHER, NAMESPACE, Containerd

SCRIPT = Path(__file__).parents[2] / "clients/containerd_shim/containerd-shim-shimd-v2"
FORMS = {"1.6": ("address",), "1.7": ("address", "2", "grpc"), "2": ("address", "2", "3")}

pytestmark = pytest.mark.skipif(IS_RUNC, reason="about the launcher of shimd")


def test_forms(own_containerd: Containerd, name: str) -> None:
    for form in FORMS[own_containerd.peer.version]:
        own_containerd.stop()
        own_containerd.environment["SHIMD_ANSWER"] = form
        own_containerd.start()
        done = own_containerd.run(name, "echo", form, flags=["--rm"])
        assert (done.returncode, done.stdout) == (0, f"{form}\n"), done.stderr


def test_best_form(containerd: Containerd, name: str) -> None:
    containerd.detached(name, "sleep", "1000")
    bundle = containerd.folder / "state/io.containerd.runtime.v2.task" / NAMESPACE / name
    written = bundle / "bootstrap.json"
    version = json.loads(written.read_text())["version"] if written.exists() else 2
    assert version == (3 if containerd.peer.version == "2" else 2)
    containerd.remove(name)


def test_path_instead_of_a_name(containerd: Containerd, name: str) -> None:
    done = containerd.try_ctr("run", "--rm", "--runtime", str(LAUNCHER), image.NAME, name, "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


def test_shell_answers_once_the_daemon_knows_containerd(containerd: Containerd, name: str) -> None:
    assert containerd.run(name, "true", flags=["--rm"]).returncode == 0
    folder, started = containerd.folder / "programs", containerd.folder / "python-started"
    folder.mkdir()
    launcher = Path(shutil.copy2(SCRIPT, folder))
    (folder / "python3").write_text(f'#!/bin/sh\necho "$@" >>{started}\nexit 1\n')
    (folder / "python3").chmod(0o755)
    for _ in range(3):
        done = containerd.try_ctr("run", "--rm", "--runtime", str(launcher), image.NAME, name, "echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert not started.exists()
