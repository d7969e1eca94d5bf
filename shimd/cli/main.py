"""shimrun's entry. What becomes the init of a container is executed first of all: it takes as long to load what it
needs as everything takes that is done here before it is needed. So little is imported until then.
"""

from __future__ import annotations

import gc
import os
import sys

from shimd.image import load
from shimd.runtime.executed import Executed

VERBS = (
    "checkpoint",
    "create",
    "delete",
    "doctor",
    "events",
    "exec",
    "features",
    "kill",
    "list",
    "pause",
    "plan",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
)

LAUNCHING = ("create", "exec", "run")

_IMAGES = {"create": "launch", "exec": "exec", "run": "launch"}


def main() -> int:
    gc.disable()
    _open_standard_streams()
    name, *words = sys.argv
    verb = _verb(words)
    spare = Executed.prepared() if verb in LAUNCHING else None
    load(_IMAGES.get(verb, "look"))
    from shimd.cli.program import Program

    return Program(os.path.basename(name), spare).main(words)


def _verb(words: list[str]) -> str:
    """A guess that is good enough here: the value of a global option may be the name of a verb too."""
    return next((word for word in words if word in VERBS), "")


def _open_standard_streams() -> None:
    """Whoever starts us without one of them would have another descriptor of ours take its number."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)  # noqa: FBT003  (positional only)
    os.close(fd)
