"""What a keeper practises leaves no trace."""

from __future__ import annotations

import os
from pathlib import Path

from shimd.init.rehearsal import rehearse
from shimd.linux import caps


def _traces() -> tuple[object, ...]:
    return (
        sorted(os.listdir("/proc/self/fd")),
        Path("/proc/self/mountinfo").read_text(),
        os.getcwd(),
        caps.capget(),
        os.stat("/").st_mode,
        dict(os.environ),
    )


def test_a_rehearsal_leaves_nothing() -> None:
    before = _traces()
    rehearse()
    assert _traces() == before
