"""The Docker engines that tests run against, and how each is told to use our runtimes.

Debian 12's 20.10 knows no shim but containerd-shim-runc-v2: there our launcher stands in containerd's PATH under that
name. From 23 on an engine runs any shim; tests/lab/peers fetches a 26. Both run an OCI runtime below runc's shim.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.containerd import peers
from tests.support import session

BIN = Path(sys.executable).parent
LAUNCHER = BIN / "containerd-shim-shimd-v2"
SHIMRUN = BIN / "shimrun"
IS_RUNC = os.environ.get("RUNTIME", "shimd") == "runc"


class Engine(NamedTuple):
    """``missing`` says why there is none, or is ""."""

    version: str
    dockerd: str = ""
    docker: str = ""
    init: str = ""
    missing: str = ""


class Setup(NamedTuple):
    """An engine with a runtime. ``links``: what is in containerd's PATH under another name than its own."""

    version: str
    runtime: str
    containerd: str
    arguments: tuple[str, ...] = ()  # of dockerd
    flags: tuple[str, ...] = ()  # of docker run
    links: tuple[tuple[str, Path], ...] = ()

    def __str__(self) -> str:
        return f"docker-{self.version}-{self.runtime}"

    @property
    def has_daemon(self) -> bool:
        return self.runtime == "shimd"

    def engine(self) -> Engine:
        return find(self.version)

    def missing(self) -> str:
        """Why it cannot be tested, or ""."""
        program = {"shimd": LAUNCHER, "shimrun": SHIMRUN}.get(self.runtime)
        reason = "" if program is None or program.exists() else f"{program} is not installed"
        return self.engine().missing or peers.find(self.containerd).missing or reason


if IS_RUNC:
    SETUPS = [Setup("20.10", "runc", "1.6"), Setup("26", "runc", "1.7")]
else:
    SETUPS = [
        Setup("20.10", "shimd", "1.6", links=(("containerd-shim-runc-v2", LAUNCHER),)),
        Setup(
            "20.10",
            "shimrun",
            "1.6",
            arguments=(f"--add-runtime=shimrun={SHIMRUN}",),
            flags=("--runtime", "shimrun"),
        ),
        Setup("26", "shimd", "1.7", flags=("--runtime", "io.containerd.shimd.v2")),
    ]


@functools.cache
def find(version: str) -> Engine:
    if version == "20.10":
        return _installed(version)
    folder = session.cache_dir() / "peers" / f"docker-{version}" / "bin"
    if os.access(folder / "dockerd", os.X_OK):
        return Engine(version, f"{folder}/dockerd", f"{folder}/docker", f"{folder}/docker-init")
    command = f"tests/lab/peers {session.cache_dir()}/peers docker-{version}"
    return Engine(version, missing=f"no docker {version}: {command}")


def _installed(version: str) -> Engine:
    dockerd = shutil.which("dockerd")
    # The client of the same package: another one may come first in PATH.
    docker = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}")
    if dockerd is None or docker is None:
        return Engine(version, missing=f"no docker {version}: apt-get install docker.io")
    text = subprocess.run([dockerd, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\b(\d+\.\d+)\.\d", text)
    if not found or found[1] != version:
        return Engine(version, missing=f"the installed docker is not {version}: {text.strip()}")
    return Engine(version, dockerd, docker, shutil.which("docker-init") or "")
