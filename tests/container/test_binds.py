"""Flags of bind mounts whose source has some: locked for a container with a user namespace, free without one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.boxes import NEWER, Box
from tests.support.requires import requires


@pytest.fixture
def source(box: Box) -> Iterator[Path]:
    """A mount whose flags are its own, not those of its file system."""
    folder = box.bundle / "source"
    folder.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def bind(box: Box, source: Path, flags: str, options: str) -> None:
    mount("-o", f"remount,bind,{flags}", str(source))
    wanted = {"destination": "/mnt", "type": "bind", "source": str(source), "options": options.split(",")}
    box.spec["mounts"].append(wanted)
    box.spec["process"]["args"] = ["sh", "-c", "awk '$2 == \"/mnt\" { print $4 }' /proc/self/mounts"]


def with_user_namespace(box: Box) -> None:
    box.spec["linux"]["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        box.spec["linux"][name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def flags_inside(box: Box) -> set[str]:
    box.write()
    return set(box.runtime("run", "--bundle", str(box.bundle), box.id).strip().split(","))


def test_flags_that_are_not_asked_for_are_cleared(box: Box, source: Path) -> None:
    bind(box, source, "ro,noexec", "bind,nosuid")
    flags = flags_inside(box)
    assert {"rw", "nosuid"} <= flags
    assert not {"ro", "noexec"} & flags


@NEWER  # runc 1.1 fails to mount it
@requires("userns")
@pytest.mark.parametrize("options", ["bind", "bind,nosuid", "bind,noexec"])
def test_locked_flags_stay(box: Box, source: Path, options: str) -> None:
    bind(box, source, "ro,noexec,noatime", options)
    with_user_namespace(box)
    assert {"ro", "noexec", "noatime"} <= flags_inside(box)


@NEWER  # runc 1.1 lets it be
@requires("userns")
@pytest.mark.parametrize(
    ("flags", "options"),
    [("ro", "bind,rw"), ("nodev", "bind,dev"), ("relatime", "bind,noatime"), ("noatime", "bind,strictatime")],
)
def test_a_locked_flag_cannot_be_cleared(box: Box, source: Path, flags: str, options: str) -> None:
    bind(box, source, flags, options)
    with_user_namespace(box)
    box.write()
    errors = box.runtime.fails("run", "--bundle", str(box.bundle), box.id)
    assert "unable to start container process: error during container init: error mounting" in errors
    assert "operation not permitted" in errors
