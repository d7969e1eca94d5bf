"""What docs/docker.md tells to type works, with the settings in deploy/docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.interop.conftest import StartDocker
from tests.interop.dockers import IS_RUNC, SHIMRUN

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/docker"

pytestmark = pytest.mark.skipif(IS_RUNC, reason="the document is about shimd")


def settings(name: str) -> str:
    """With the path of this tree's shimrun."""
    return (DEPLOY / name).read_text().replace("/usr/local/bin/shimrun", str(SHIMRUN))


def commands(version: str) -> list[str]:
    """Of the section about that version."""
    sections = (ROOT / "docs/docker.md").read_text().split("\n## ")
    section = next(section for section in sections if section.startswith(f"Docker {version}"))
    return re.findall(r"^ {4,6}(docker .*)$", section, re.MULTILINE)


@pytest.mark.core
def test_commands(start_docker: StartDocker) -> None:
    is_old = start_docker.setup.version == "20.10"
    docker = start_docker(settings=settings("daemon-20.10.json" if is_old else "daemon.json"))
    if not is_old:
        docker("rmi", "busybox")
    found = commands("20.10" if is_old else "23")
    assert len(found) >= (1 if is_old else 12)
    for command in found:
        arguments = command.split()[1:]
        if arguments[0] == "run":
            arguments.insert(1, "--network=none")
        docker(*arguments)


@pytest.mark.core
def test_settings(start_docker: StartDocker) -> None:
    setup = start_docker.setup
    if setup.version == "20.10":
        pytest.skip("this version cannot validate")
    command = [setup.engine().dockerd, "--validate", "--config-file", str(DEPLOY / "daemon.json")]
    subprocess.run(command, check=True, capture_output=True)
