"""Containers that answer: what their program printed, or what an exec in one did."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon.boxes import Box, shell
from tests.support.fifo import Fifos

_numbers = itertools.count(1)


class Said(NamedTuple):
    """What a process wrote to both streams, and how it ended."""

    output: str
    code: int


def run(box: Box, folder: Path) -> Said:
    """The container's whole life, but for its removal."""
    with Fifos(folder / f"fifos{next(_numbers)}", stderr=False) as fifos:
        box.make(stdout=fifos.stdout, stderr=fifos.stdout)
        box.start()
        return Said(fifos.read_stdout().decode(), box.wait())


def ask(box: Box, folder: Path, script: str, **process: Any) -> Said:
    """An exec of a shell in a running container."""
    name = f"ask{next(_numbers)}"
    with Fifos(folder / name, stderr=False) as fifos:
        box.exec(name, *shell(script), process=process, stdout=fifos.stdout, stderr=fifos.stdout)
        box.start(name)
        said = Said(fifos.read_stdout().decode(), box.wait(name))
    box.delete(name)
    return said
