"""Stopping every task of a cgroup and letting it go on.

cgroup v2: ``cgroup.freeze`` is a wish, ``cgroup.events`` tells (and wakes poll(2)) when it has come true; SIGKILL
gets through to frozen tasks. cgroup v1: a task that forks while the state is FREEZING can keep the cgroup from ever
reaching FROZEN, and the kernel notifies nobody, so the write is repeated, with a thaw now and then that lets such
forks finish; signals, SIGKILL too, wait for the thaw. A freeze that fails is undone: a cgroup stuck half-way would
hold its tasks for good.
"""

from __future__ import annotations

import os
import select
import time
from errno import ENOENT

from shimd.cgroups.files import GONE, Directory, errno_text, read_fd, write_error
from shimd.contexts import suppress
from shimd.errors import RuntimeFailure

_V1_STATE = "freezer.state"
_V1_TRIES = 1000
_V1_THAW_EVERY = 50
_V1_PAUSE = 0.01  # seconds, with each thaw: what a loaded machine needs to run the task that forks
_V2_LIMIT = 10.0  # seconds


def freeze_v1(directory: Directory) -> None:
    """Raises RuntimeFailure, with the cgroup thawed."""
    try:
        for attempt in range(1, _V1_TRIES + 1):
            if attempt % _V1_THAW_EVERY == 0:
                directory.write(_V1_STATE, "THAWED")
                time.sleep(_V1_PAUSE)
            directory.write(_V1_STATE, "FROZEN")
            if directory.read(_V1_STATE) == "FROZEN\n":
                return
    except OSError as err:
        _thaw_after_failure(directory, _V1_STATE, "THAWED")
        raise write_error(err, "FROZEN") from err
    _thaw_after_failure(directory, _V1_STATE, "THAWED")
    raise RuntimeFailure(f"unable to freeze {directory.path}")


def thaw_v1(directory: Directory) -> None:
    try:
        directory.write(_V1_STATE, "THAWED")
    except OSError as err:
        raise write_error(err, "THAWED") from err


def frozen_v1(directory: Directory) -> bool:
    """Whether this cgroup itself was frozen, not merely one above it; half-way (FREEZING) counts, as it has to be
    thawed too.
    """
    return directory.read_or("freezer.self_freezing", "0") == "1\n"


def freeze_v2(directory: Directory) -> None:
    """Raises RuntimeFailure, with the cgroup thawed."""
    try:
        directory.write("cgroup.freeze", "1")
        if _wait_frozen(directory):
            return
    except OSError as err:
        _thaw_after_failure(directory, "cgroup.freeze", "0")
        if err.errno == ENOENT:
            raise RuntimeFailure(f"freezer not supported: open {err.filename}: {errno_text(err)}") from err
        raise write_error(err, "1") from err
    _thaw_after_failure(directory, "cgroup.freeze", "0")
    raise RuntimeFailure(f"timeout of {_V2_LIMIT:.0f}s reached waiting for {directory.path} to freeze")


def thaw_v2(directory: Directory) -> None:
    try:
        directory.write("cgroup.freeze", "0")
    except OSError as err:
        raise write_error(err, "0") from err


def frozen_v2(directory: Directory) -> bool:
    """Whether this cgroup itself was frozen, not merely one above it."""
    return directory.read_or("cgroup.freeze", "0") == "1\n"


def _thaw_after_failure(directory: Directory, file: str, value: str) -> None:
    with suppress(OSError):
        directory.write(file, value)


def _wait_frozen(directory: Directory) -> bool:
    fd = directory.open("cgroup.events", os.O_RDONLY)
    poller = select.poll()
    poller.register(fd, select.POLLPRI)
    deadline = time.monotonic() + _V2_LIMIT
    try:
        while True:
            os.lseek(fd, 0, os.SEEK_SET)
            if "frozen 1\n" in read_fd(fd, f"{directory.path}/cgroup.events"):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poller.poll(left * 1000)
    except OSError as err:
        if err.errno in GONE:  # removed meanwhile: nothing is left to run
            return True
        raise
    finally:
        os.close(fd)
