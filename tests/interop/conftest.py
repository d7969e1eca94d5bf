"""A Docker engine of each version with each of our runtimes, and Podman as root and as a user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.docker_rig import SETTINGS, Docker, shims
from tests.interop.dockers import SETUPS, SHIMRUN, Setup
from tests.interop.network import own_network
from tests.interop.podman_rig import USER, Podman, account, helpers
from tests.support import session, wait
from tests.support.requires import lack

WHOLE = os.environ.get("INTEROP") == "whole"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: runs with every setup, not just the first; INTEROP=whole runs all so")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The other setups differ in a few paths only, and runc's shim takes its time: what is not core is left out."""
    left_out = [item for item in items if not WHOLE and _is_other(item) and not item.get_closest_marker("core")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_other(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    setup = parameters.get("docker") or parameters.get("start_docker")
    return setup is not None and setup != SETUPS[0]


class StartDocker:
    """For tests that stop and start dockerd, or give it arguments and settings of their own."""

    def __init__(self, stack: ExitStack, setup: Setup) -> None:
        self._stack = stack
        self.setup = setup

    def __call__(self, *arguments: str, settings: str = SETTINGS) -> Docker:
        # Not pytest's folder: the paths of sockets are short. Ids of a user namespace pass through.
        folder = Path(tempfile.mkdtemp(prefix=f"{session.TAG}-"))
        folder.chmod(0o711)
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._stack.enter_context(own_network())
        return self._stack.enter_context(Docker(folder, self.setup, arguments=arguments, settings=settings))


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def docker(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[Docker]:
    """One for all tests of a module."""
    for starter in _starter(request.param):
        yield starter()


@pytest.fixture(params=SETUPS, ids=str)
def start_docker(request: pytest.FixtureRequest, _test_leaves_nothing: None) -> Iterator[StartDocker]:
    yield from _starter(request.param)


def _starter(setup: Setup) -> Iterator[StartDocker]:
    for reason in (lack("root"), setup.missing()):
        if reason:
            pytest.skip(reason)
    with ExitStack() as stack:
        yield StartDocker(stack, setup)


@pytest.fixture(scope="module")
def podman(module_place: Path, _module_leaves_nothing: None) -> Iterator[Podman]:
    """As root."""
    _require_podman()
    with Podman(module_place) as rig:
        yield rig


@pytest.fixture(scope="module")
def rootless(module_place: Path, _module_leaves_nothing: None) -> Iterator[Podman]:
    """As an ordinary user."""
    _require_podman("program:newuidmap", "file:/etc/subuid", "file:/etc/subgid")
    called = subprocess.run([*USER.prefix, SHIMRUN, "--version"], capture_output=True, text=True, check=False)
    if called.returncode != 0:
        pytest.skip(f"ordinary users cannot execute {SHIMRUN}: {called.stderr.strip()}")
    home = module_place / "home"
    home.mkdir(mode=0o711)
    with account(module_place), Podman(home, USER) as rig:
        yield rig


def _require_podman(*more: str) -> None:
    for need in ("root", "program:podman", *more):
        if reason := lack(need):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _engines_settle(_test_leaves_nothing: None) -> Iterator[None]:
    """Some of an engine's processes outlive the container that they are for: they end by themselves."""
    before = shims() | helpers()
    yield
    for pid in (shims() | helpers()) - before:
        wait.process_gone(pid)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a container: that of the test."""
    return f"{request.node.originalname.removeprefix('test_')[:40].replace('_', '-')}-{os.getpid()}"
