"""The containerds that tests run against: Debian's own 1.6, and those that tests/lab/peers fetches into the cache."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from typing import NamedTuple

from tests.support import session

VERSIONS = ("1.6", "1.7", "2")


class Peer(NamedTuple):
    """A containerd and what belongs to it. ``missing`` says why there is none, or is ""."""

    version: str
    folder: str
    missing: str

    def program(self, name: str) -> str:
        return os.path.join(self.folder, name)


@functools.cache
def find(version: str) -> Peer:
    if version == "1.6":
        return _installed(version)
    name = f"containerd-{version}"
    folder = str(session.cache_dir() / "peers" / name / "bin")
    if os.access(f"{folder}/containerd", os.X_OK):
        return Peer(version, folder, "")
    return Peer(version, folder, f"no containerd {version}: tests/lab/peers {session.cache_dir()}/peers {name}")


def _installed(version: str) -> Peer:
    program = shutil.which("containerd")
    if program is None:
        return Peer(version, "", f"no containerd {version}: apt-get install containerd")
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\b(\d+\.\d+)\.\d", text)
    missing = "" if found and found[1] == version else f"the installed containerd is not {version}: {text.strip()}"
    return Peer(version, os.path.dirname(program), missing)
