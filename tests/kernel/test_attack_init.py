"""The first code of a new process, before it is the container's."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from shimd.init import main
from shimd.linux import process


def holds(check: Callable[[], bool]) -> bool:
    """Of a child that is shut off; it cannot report more, or import what pytest would need to."""
    pid = os.fork()
    if pid == 0:
        result = 2
        try:
            main.enter(())
            result = not check()
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nothing_is_imported_once_inside(tmp_path: Path) -> None:
    """A module that the container offers under the name of one that is loaded late would run as the host's root."""
    names = ("late", "colorsys", "encodings.cp037")
    (tmp_path / "encodings").mkdir()
    for name in names:
        (tmp_path / f"{name.replace('.', '/')}.py").write_text("")

    def refused(name: str) -> bool:
        try:
            importlib.import_module(name)
        except (ImportError, ImportWarning):  # warnings are errors here
            return True
        return False

    def check() -> bool:
        sys.path.insert(0, str(tmp_path))
        return all(map(refused, names))

    assert holds(check)


def test_it_is_shut_off_at_once() -> None:
    fd = os.dup(0)
    os.set_inheritable(fd, True)  # noqa: FBT003
    try:
        assert holds(lambda: process.get_dumpable() == 0)
        assert holds(lambda: os.getsid(0) == os.getpid())
        assert holds(lambda: not os.path.exists(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
