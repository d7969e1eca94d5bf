"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.keeper_rig import Keeper


@pytest.fixture
def keeper(place: Path) -> Iterator[Keeper]:
    (place / "keeper").mkdir(mode=0o700)
    keeper = Keeper(place / "keeper")
    yield keeper
    keeper.close()
