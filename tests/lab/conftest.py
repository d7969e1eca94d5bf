"""Fixtures of the tests in virtual machines."""

from __future__ import annotations

from tests.daemon.boxes import box

__all__ = ["box"]
