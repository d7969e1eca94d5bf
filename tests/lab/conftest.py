"""Fixtures of the tests in virtual machines."""

from __future__ import annotations

from tests.daemon.boxes import box
from tests.interop.conftest import docker, name

__all__ = ["box", "docker", "name"]
