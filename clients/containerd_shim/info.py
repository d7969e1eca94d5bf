"""``-v`` and ``-info``: what this is, and what it can do. containerd asks rarely: here imports may take their time."""

from __future__ import annotations

import json
import platform
from importlib import metadata

from clients.containerd_shim import wire
from shimd.host.facts import probe
from shimd.oci.features import features
from shimd.plan.mount_options import OPTION_NAMES
from shimd.plan.seccomp import libseccomp_version

FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def version(name: str) -> bytes:
    return (
        f"{name}:\n  Version:  {_version()}\n  Revision: \n  Python version: {platform.python_version()}\n\n".encode()
    )


def runtime_info(options: bytes, name: str) -> bytes:
    """RuntimeInfo; ``options`` is an Any, or empty, and is given back."""
    document = features(probe(), version=_version(), libseccomp=libseccomp_version(), mount_options=OPTION_NAMES)
    described = wire.text(1, FEATURES_TYPE) + wire.text(2, json.dumps(document))
    return wire.text(1, name) + wire.text(2, wire.text(1, _version())) + wire.text(3, options) + wire.text(4, described)


def _version() -> str:
    try:
        return metadata.version("shimd")
    except metadata.PackageNotFoundError:
        return "unknown"
