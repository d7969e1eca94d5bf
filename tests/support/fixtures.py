"""Fixtures for tests that make containers; what they need is imported only by who uses them."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import session
from tests.support.bundle import make_bundle, remove_tree
from tests.support.rootfs import busybox_rootfs, debian_rootfs

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.daemon import Daemon

MakeBundle = Callable[..., Path]
_numbers = itertools.count(1)


def _folder() -> Iterator[Path]:
    """A folder that other users may pass through (tmp_path is 0700, which ids of a user namespace cannot)."""
    folder = Path(tempfile.mkdtemp(prefix=f"{session.TAG}-"))
    folder.chmod(0o711)
    yield folder
    remove_tree(folder)


place = pytest.fixture(_folder, name="place")
module_place = pytest.fixture(_folder, name="module_place", scope="module")


@pytest.fixture
def container_id() -> str:
    """An id that no other container of this machine has and that names this run."""
    return f"{session.TAG}-{next(_numbers)}"


@pytest.fixture
def new_id() -> Callable[[], str]:
    """For tests with several containers."""
    return lambda: f"{session.TAG}-{next(_numbers)}"


@pytest.fixture
def busybox(place: Path) -> Path:
    """A fresh busybox rootfs, writable."""
    return busybox_rootfs(place / "rootfs")


@pytest.fixture(scope="session")
def debian() -> Path:
    """The shared Debian minbase rootfs; not to be written to."""
    return debian_rootfs()


@pytest.fixture
def bundle(place: Path) -> MakeBundle:
    """``bundle(spec, rootfs=…)``: a new bundle folder."""
    numbers = itertools.count(1)

    def make(spec: Mapping[str, Any], rootfs: Path | None = None) -> Path:
        return make_bundle(place / f"bundle{next(numbers)}", spec, rootfs)

    return make


@pytest.fixture(scope="module")
def daemon(module_place: Path) -> Iterator[Daemon]:
    """A private daemon for the module. Tests that restart or reconfigure one make their own ``Daemon``."""
    from tests.support.daemon import Daemon

    with Daemon(module_place / "daemon") as running:
        yield running


@pytest.fixture
def client(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client in a namespace of the test's own, so that ids do not meet."""
    with daemon.client(namespace=f"test-{next(_numbers)}-{os.getpid()}") as connected:
        yield connected
