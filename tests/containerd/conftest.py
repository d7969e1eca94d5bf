"""A containerd of each version."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd import peers
from tests.containerd.rig import IS_RUNC, LAUNCHER, Containerd
from tests.support import session
from tests.support.requires import lack

IDS = [f"containerd-{version}" for version in peers.VERSIONS]


@pytest.fixture(scope="module", params=peers.VERSIONS, ids=IDS)
def containerd(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[Containerd]:
    """Of each version, one for all tests of a module."""
    yield from _running(request.param)


@pytest.fixture(params=peers.VERSIONS, ids=IDS)
def own_containerd(request: pytest.FixtureRequest, _test_leaves_nothing: None) -> Iterator[Containerd]:
    """One that a test may stop and start."""
    yield from _running(request.param)


def _running(version: str) -> Iterator[Containerd]:
    peer = peers.find(version)
    for reason in (lack("root"), peer.missing, "" if IS_RUNC or LAUNCHER.exists() else f"{LAUNCHER} is not installed"):
        if reason:
            pytest.skip(reason)
    # Not pytest's folder: the paths of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix=f"{session.TAG}-"))
    folder.chmod(0o711)
    try:
        with Containerd(folder, peer) as rig:
            yield rig
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a container: that of the test."""
    words = request.node.originalname.removeprefix("test_")[:40].rstrip("_").replace("_", "-")
    return f"{words}-{os.getpid()}"
