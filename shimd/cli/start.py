"""The runtime of a call: this host, a launcher that clones by itself, the state below ``--root``."""

from __future__ import annotations

from shimd.cli.settings import Settings
from shimd.host.facts import probe
from shimd.runtime.container import Runtime
from shimd.runtime.direct import DirectLauncher


def make_runtime(settings: Settings) -> Runtime:
    return Runtime(probe(), DirectLauncher(), settings.root)
