"""What docs/containerd.md tells to type works, and containerd reads the settings in deploy/."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.containerd import peers
from tests.containerd.rig import IS_RUNC, Containerd

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(IS_RUNC, reason="the document is about shimd")
def test_commands(own_containerd: Containerd) -> None:
    commands = re.findall(r"^ {4}(ctr .*)$", (ROOT / "docs/containerd.md").read_text(), re.MULTILINE)
    assert len(commands) > 5
    own_containerd.ctr("images", "rm", "--sync", "shimd.test/busybox:latest")
    for command in commands:
        own_containerd.ctr(*command.split()[1:])


@pytest.mark.parametrize(
    ("version", "name"), [("1.6", "config-1.toml"), ("1.7", "config-1.toml"), ("2", "config-2.toml")]
)
def test_settings(version: str, name: str) -> None:
    peer = peers.find(version)
    if peer.missing:
        pytest.skip(peer.missing)
    command = [peer.program("containerd"), "--config", str(ROOT / "deploy/containerd" / name), "config", "dump"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    section = re.search(r"containerd\.runtimes\.shimd\]\n(.*?)\n\n", text, re.DOTALL)
    assert section, text
    assert re.search(r"runtime_type = ['\"]io\.containerd\.shimd\.v2['\"]", section[1])
