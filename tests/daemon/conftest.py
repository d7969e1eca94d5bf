"""Fixtures of the tests of the daemon."""

from __future__ import annotations

from tests.daemon.boxes import box
from tests.daemon.commands import shimctl

__all__ = ["box", "shimctl"]
