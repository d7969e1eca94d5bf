"""A containerd of each version."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.containerd import peers, pods
from tests.containerd.cri import Cri
from tests.containerd.pods import PodContainerd, own_network
from tests.containerd.rig import IS_RUNC, LAUNCHER, Containerd
from tests.support import session
from tests.support.requires import lack

IDS = [f"containerd-{version}" for version in peers.VERSIONS]
POD_KINDS = [*((version, "podsandbox") for version in peers.VERSIONS), ("2", "shim")]
POD_IDS = [f"containerd-{version}-{sandboxer}" for version, sandboxer in POD_KINDS]

C = TypeVar("C", bound=Containerd)


@pytest.fixture(scope="module", params=peers.VERSIONS, ids=IDS)
def containerd(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[Containerd]:
    """Of each version, one for all tests of a module."""
    yield from running(request.param, Containerd)


@pytest.fixture(params=peers.VERSIONS, ids=IDS)
def own_containerd(request: pytest.FixtureRequest, _test_leaves_nothing: None) -> Iterator[Containerd]:
    """One that a test may stop and start."""
    yield from running(request.param, Containerd)


@pytest.fixture(scope="module", params=POD_KINDS, ids=POD_IDS)
def pod_containerd(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[PodContainerd]:
    """One with pods, of each version and kind of pods."""
    yield from _running_pods(*request.param)


@pytest.fixture(params=POD_KINDS, ids=POD_IDS)
def own_pod_containerd(request: pytest.FixtureRequest, _test_leaves_nothing: None) -> Iterator[PodContainerd]:
    """The same, that a test may stop and start."""
    yield from _running_pods(*request.param)


@pytest.fixture
def cri(pod_containerd: PodContainerd) -> Iterator[Cri]:
    with pod_containerd.client() as client:
        yield client


def _running_pods(version: str, sandboxer: str) -> Iterator[PodContainerd]:
    if reason := pods.is_there():
        pytest.skip(reason)
    if IS_RUNC and sandboxer == "shim":
        pytest.skip("the shim of runc knows no sandboxes")
    with own_network():
        yield from running(version, lambda folder, peer: PodContainerd(folder, peer, sandboxer))


def running(version: str, make: Callable[[Path, peers.Peer], C]) -> Iterator[C]:
    peer = peers.find(version)
    for reason in (lack("root"), peer.missing, "" if IS_RUNC or LAUNCHER.exists() else f"{LAUNCHER} is not installed"):
        if reason:
            pytest.skip(reason)
    # Not pytest's folder: the paths of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix=f"{session.TAG}-"))
    folder.chmod(0o711)
    try:
        with make(folder, peer) as rig:
            yield rig
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a container: that of the test."""
    words = request.node.originalname.removeprefix("test_")[:40].rstrip("_").replace("_", "-")
    return f"{words}-{os.getpid()}"
