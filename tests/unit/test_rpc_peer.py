from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest

from shimd.rpc.peer import may_connect

OWN, GROUP, OTHER = 4000, 4001, 5000


class Peer:
    """A socket whose other end has these ids."""

    def __init__(self, uid: int, gid: int) -> None:
        self._ids = uid, gid

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 4711, *self._ids)


@pytest.fixture(autouse=True)
def _own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OWN)
    monkeypatch.setattr(os, "getegid", lambda: GROUP)


@pytest.mark.parametrize(
    ("uid", "gid", "admitted"),
    [
        (0, 0, True),
        (0, OTHER, True),
        (OWN, GROUP, True),
        (OWN, OTHER, False),
        (OTHER, GROUP, False),
        (OTHER, 0, False),
        (7, 7, True),
    ],
)
def test_who_may_connect(uid: int, gid: int, *, admitted: bool) -> None:
    peer: Any = Peer(uid, gid)
    assert may_connect(peer, frozenset({7})) is admitted


def test_a_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    peer: Any = Peer(OTHER, 3)
    may_connect(peer, frozenset())
    assert "uid 5000, gid 3 (process 4711)" in caplog.text


def test_a_real_socket() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert not may_connect(ours, frozenset()) or os.getuid() == 0
