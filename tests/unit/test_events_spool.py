from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.events import spool as module
from shimd.events.spool import Spool


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool")


@pytest.fixture
def spool(path: str) -> Iterator[Spool]:
    opened = Spool(path)
    yield opened
    opened.close()


def messages(path: str) -> list[bytes]:
    """What the next process finds."""
    found = []
    spool = Spool(path)
    while len(spool):
        found.append(spool.first())
        spool.take()
    spool.close()
    return found


def test_first_in_first_out(spool: Spool) -> None:
    for message in (b"a", b"", b"c" * 100_000):
        assert spool.put(message)
    assert len(spool) == 3
    found = []
    while len(spool):
        found.append(spool.first())
        spool.take()
    assert found == [b"a", b"", b"c" * 100_000]
    with pytest.raises(IndexError):
        spool.first()


def test_what_was_not_taken_outlives_the_process(spool: Spool, path: str) -> None:
    for number in range(10):
        spool.put(b"%d" % number)
    spool.take()
    spool.take()
    spool.close()
    assert messages(path) == [b"%d" % number for number in range(2, 10)]
    assert messages(path) == []


def test_killed_at_any_moment_nothing_is_lost(spool: Spool, path: str, tmp_path: Path) -> None:
    """The file is read as it is after each step, without a close."""
    expected: list[bytes] = []
    for number in range(100):
        if number % 3 == 2:
            spool.take()
            expected.pop(0)
        else:
            spool.put(b"x" * number)
            expected.append(b"x" * number)
        copy = tmp_path / "copy"
        copy.write_bytes(Path(path).read_bytes())
        assert messages(str(copy)) == expected


def test_file_is_empty_when_the_queue_is(spool: Spool, path: str) -> None:
    for _ in range(1000):
        spool.put(b"x" * 500)
        spool.put(b"y" * 500)
        spool.take()
        spool.take()
        assert os.path.getsize(path) < 100


def test_file_of_a_queue_that_is_never_empty_does_not_grow(
    spool: Spool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPACT", 10_000)
    spool.put(b"0")
    for number in range(1, 2000):
        spool.put(b"%d" % number * 100)
        spool.take()
        assert os.path.getsize(path) < 25_000
    assert messages(path) == [b"1999" * 100]


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
def test_message_that_was_written_half_is_dropped(spool: Spool, path: str, cut: int) -> None:
    spool.put(b"whole")
    spool.put(b"half")
    os.truncate(path, os.path.getsize(path) - cut)
    assert messages(path) == [b"whole"]


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 8, b"\xff" * 100, bytes(100)])
def test_rubbish_is_no_message(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)
    assert all(len(message) == 0 for message in messages(path))
    spool = Spool(path)
    assert spool.put(b"new")
    spool.close()
    assert messages(path)[-1:] == [b"new"]


def test_bound(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    assert spool.put(b"12345")
    assert spool.put(b"67890")
    assert not spool.put(b"x")
    spool.take()
    assert spool.put(b"x")
    assert len(spool) == 2


def test_full_disk_costs_the_copy_only(
    spool: Spool, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pwrite(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spool.put(b"before")
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert spool.put(b"after")
    assert spool.put(b"later")
    assert "kept in memory only" in caplog.text
    assert not os.path.exists(path)
    found = []
    while len(spool):
        found.append(spool.first())
        spool.take()
    assert found == [b"before", b"after", b"later"]


def test_file_is_private(spool: Spool, path: str) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600
