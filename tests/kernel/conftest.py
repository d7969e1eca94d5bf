"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.host.facts import probe
from shimd.runtime.direct import DirectLauncher
from tests.kernel.keeper_rig import Keeper
from tests.kernel.runtime_rig import Rig, rig_with


@pytest.fixture
def keeper(place: Path) -> Iterator[Keeper]:
    (place / "keeper").mkdir(mode=0o700)
    keeper = Keeper(place / "keeper")
    yield keeper
    keeper.close()


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, busybox: Path, container_id: str) -> Iterator[Rig]:
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def direct(place: Path, busybox: Path, container_id: str) -> Rig:
    """Where it makes no difference who clones."""
    return Rig(probe(), DirectLauncher(), place, container_id)
