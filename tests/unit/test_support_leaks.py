"""The leak check finds what a test leaves in its own process, and waits for what is about to go."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from tests.support import leaks, wait

SCOPE = leaks.Scope(machine=False, alone=True)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> leaks.Snapshot:
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.05)
    return leaks.take(SCOPE)


def test_nothing_left_is_nothing_reported(before: leaks.Snapshot) -> None:
    assert leaks.leaked(before, SCOPE) == []


def test_a_descriptor_is_reported_with_what_it_is(before: leaks.Snapshot) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    found = leaks.leaked(before, SCOPE)
    os.close(fd)
    assert found == [f"descriptors: {fd} -> /dev/null"]


def test_a_descriptor_that_became_another_file_is_reported(before: leaks.Snapshot) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    again = leaks.take(SCOPE)
    os.dup2(other := os.open("/dev/zero", os.O_RDONLY), fd)
    os.close(other)
    found = leaks.leaked(again, SCOPE)
    os.close(fd)
    assert found == [f"descriptors: {fd} -> /dev/zero"]


def test_a_child_is_reported_until_it_is_reaped(before: leaks.Snapshot) -> None:
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
        wait.exited(pidfd)
        os.close(pidfd)
        (found,) = leaks.leaked(before, SCOPE)
    assert found.startswith(f"processes: {child.pid} ")
    assert leaks.leaked(before, SCOPE) == []


def test_a_thread_that_ends_soon_is_waited_for(before: leaks.Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="lingering")
    thread.start()
    (found,) = leaks.leaked(before, SCOPE)
    assert found.startswith("threads: lingering")
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", wait.SECONDS)
    threading.Timer(0.01, go.set).start()
    assert leaks.leaked(before, SCOPE) == []
