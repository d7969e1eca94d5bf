"""The runtime of a call: this host, a launcher of processes that are our children, the state below ``--root``."""

from __future__ import annotations

import os

from shimd.cli.settings import Settings
from shimd.host.facts import probe
from shimd.image import load
from shimd.runtime.container import Runtime
from shimd.runtime.direct import DirectLauncher


def make_runtime(settings: Settings, launcher: DirectLauncher) -> Runtime:
    host = probe()._replace(rootless=settings.rootless)
    load("v1" if host.cgroup_mode in ("v1", "hybrid") else "v2")  # all verbs have to do with cgroups
    return Runtime(host, launcher, settings.root, seccomp_cache_dir=_seccomp_cache())


def _seccomp_cache() -> str:
    """Root has the daemon's, others one of their own; "" when it cannot be made: then each filter is compiled anew."""
    place = "/var/cache" if os.geteuid() == 0 else os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(place, "shimd", "seccomp")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError:
        return ""
    return path
