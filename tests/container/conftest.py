"""Fixtures of the tests through the command line in $RUNTIME."""

from __future__ import annotations

from tests.container.boxes import box, runtime

__all__ = ["box", "runtime"]
