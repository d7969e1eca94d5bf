"""Every test: run only where its needs are met, and checked to leave nothing behind (see ``tests.support.leaks``)."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from tests.support import leaks
from tests.support import session as own
from tests.support.requires import lack

pytest_plugins = ["tests.support.fixtures"]

TESTS = Path(__file__).parent
NEED_ROOT = ("kernel", "container", "daemon", "containerd", "interop", "chaos", "lab")
MACHINE = os.environ.get("LAB_VM", "").split()
"""What the virtual machine of tests/lab/vm that this is has; nothing: it is no such machine."""

P = ParamSpec("P")

presence_key = pytest.StashKey[own.Presence]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root; given to all tests of the folders that make containers")
    config.addinivalue_line("markers", "lab(kind): runs in tests/lab/vm alone, of that kind (cgroup2 if none is named)")
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs with --slow, as in `make test`")
    config.addinivalue_line("markers", "requires(need, ...): what the machine must offer, see tests.support.requires")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a virtual machine tests that are for another one are not its business; elsewhere they are skipped."""
    elsewhere = [item for item in items if MACHINE and not _is_for(item, MACHINE)]
    if elsewhere:
        items[:] = [item for item in items if item not in elsewhere]
        config.hook.pytest_deselected(items=elsewhere)


def _is_for(item: pytest.Item, machine: list[str]) -> bool:
    mark = item.get_closest_marker("lab")
    return mark is None or set(mark.args or ("cgroup2",)) <= set(machine)


def pytest_collection_finish(session: pytest.Session) -> None:
    """A run that makes containers has mounts of its own, and lets other such runs know of it."""
    if session.config.option.collectonly:
        return
    own.take_signals_back()
    own.mark_processes()
    if any(item.get_closest_marker("root") for item in session.items) and not lack("root"):
        session.config.stash[presence_key] = own.Presence()
        own.private_mounts()


@pytest.hookimpl(trylast=True)  # after the fixtures of an interrupted run
def pytest_sessionfinish(session: pytest.Session) -> None:
    presence = session.config.stash.get(presence_key, None)
    if presence is not None:
        leaks.sweep()
        presence.close()


def pytest_itemcollected(item: pytest.Item) -> None:
    folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
    if folder in NEED_ROOT:
        item.add_marker("root")
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _leaving_no_tasks(item.obj)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needs = [need for mark in item.iter_markers("requires") for need in mark.args]
    if item.get_closest_marker("root"):
        needs.insert(0, "root")
    lab = item.get_closest_marker("lab")
    if lab and not MACHINE:
        pytest.skip("needs the virtual machine: make test-lab")
    for need in needs:
        if reason := lack(need):
            # The machine is there for this test: if it lacks something, nobody else tests that.
            (pytest.fail if lab else pytest.skip)(reason)
    if item.get_closest_marker("slow") and not item.config.option.slow:
        pytest.skip("slow: runs with --slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("not tested here")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5} x {reason}")


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fixtures shared by a module (a daemon, say) are held to the same as a test."""
    yield from _leaving_nothing(request, "the fixtures of this module left behind")


@pytest.fixture(autouse=True)
def _test_leaves_nothing(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[None]:
    yield from _leaving_nothing(request, "the test left behind")


def _leaving_nothing(request: pytest.FixtureRequest, what: str) -> Iterator[None]:
    presence = request.config.stash.get(presence_key, None)
    machine = presence is not None and _needs_root(request.node)
    scope = leaks.Scope(machine=machine, alone=presence is not None and presence.alone())
    before = leaks.take(scope)
    yield
    alone = scope.alone and presence is not None and presence.alone()
    left = leaks.leaked(before, scope._replace(alone=alone))
    if left:
        pytest.fail(f"{what}:\n  " + "\n  ".join(left), pytrace=False)


def _needs_root(node: pytest.Item | pytest.Collector) -> bool:
    """Whether the test, or any test of the module, may leave things outside of this process."""
    if isinstance(node, pytest.Item):
        return node.get_closest_marker("root") is not None
    return any(item.get_closest_marker("root") for item in node.session.items if item.path == node.path)


def _leaving_no_tasks(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Fail when tasks that the test started are still there a second after it returned; fixtures may own tasks."""

    @functools.wraps(test)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        left = asyncio.all_tasks() - before
        if left:
            _, left = await asyncio.wait(left, timeout=1)
        assert not left, f"the test left tasks behind: {left}"

    return checked
