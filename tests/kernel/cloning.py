"""Processes that carry out plans as children of the test itself."""

from __future__ import annotations

import os

from shimd.init.request import Launched, LaunchRequest
from shimd.init.spawn import start_clone


def clone_into_plan(request: LaunchRequest) -> Launched:
    """The process, a child of the caller, which has one thread. Raises RuntimeFailure."""
    made = start_clone(request)
    if isinstance(made, Launched):
        return made
    try:
        return made.finish()
    finally:
        os.waitpid(made.pid, 0)
