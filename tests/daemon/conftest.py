"""Fixtures of the tests of the daemon."""

from __future__ import annotations

from tests.daemon.boxes import box

__all__ = ["box"]
