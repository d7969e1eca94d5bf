from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.linux.path import (
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
    mkdir_all_in_root,
    open_in_root,
    openat2,
)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """The descriptor of ``<tmp>/root``; beside it a directory that nothing may reach."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    assert list((tmp_path / "outside").iterdir()) == []


def made(fd: int) -> str:
    name = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    return name


def test_links_stay_inside(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/absolute").symlink_to("/etc")
    (tmp_path / "root/climbing").symlink_to("../../../../etc")
    for name in ("absolute", "climbing", "/etc", "../etc", "etc/../../etc"):
        assert made(open_in_root(root, name, os.O_PATH)) == str(tmp_path / "root/etc")


def test_resolve_flags_refuse(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/link").symlink_to("/")
    with pytest.raises(OSError, match="symbolic links"):
        openat2(root, "link", os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    with pytest.raises(OSError, match="cross-device"):
        openat2(root, "..", os.O_PATH, resolve=RESOLVE_BENEATH)
    with pytest.raises(FileNotFoundError) as caught:
        open_in_root(root, "missing", os.O_PATH)
    assert caught.value.filename == "missing"


def test_magic_links_are_refused() -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        with pytest.raises(OSError, match="symbolic links"):
            open_in_root(proc, f"{os.getpid()}/root/etc", os.O_PATH)
    finally:
        os.close(proc)


def test_descriptors_are_close_on_exec_and_files_can_be_made(root: int, tmp_path: Path) -> None:
    fd = open_in_root(root, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert (tmp_path / "root/new").stat().st_mode & 0o777 == 0o600


def test_mkdir_all_makes_what_is_missing(root: int, tmp_path: Path) -> None:
    assert made(mkdir_all_in_root(root, "/a/b//./c", 0o755)) == str(tmp_path / "root/a/b/c")
    assert made(mkdir_all_in_root(root, "a/b/d", 0o700)) == str(tmp_path / "root/a/b/d")
    assert (tmp_path / "root/a/b/d").stat().st_mode & 0o777 == 0o700
    assert made(mkdir_all_in_root(root, "/", 0o755)) == str(tmp_path / "root")


@pytest.mark.parametrize("target", ["/run/inner", "run/inner", "../../run/inner", "/../run/inner"])
def test_mkdir_all_follows_dangling_links_inside(root: int, tmp_path: Path, target: str) -> None:
    (tmp_path / "root/var").symlink_to(target)
    assert made(mkdir_all_in_root(root, "/var/lock/x", 0o755)) == str(tmp_path / "root/run/inner/lock/x")


def test_mkdir_all_dangling_link_to_outside_stays_inside(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/escape").symlink_to(f"{tmp_path}/outside")
    inside = mkdir_all_in_root(root, "escape/evil", 0o755)
    assert made(inside) == f"{tmp_path}/root{tmp_path}/outside/evil"


def test_mkdir_all_refuses_loops_and_files(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/loop").symlink_to("loop")
    (tmp_path / "root/ping").symlink_to("pong/x")
    (tmp_path / "root/pong").symlink_to("ping/y")
    (tmp_path / "root/file").touch()
    for path in ("loop/x", "ping/z"):
        with pytest.raises(OSError, match="symbolic links"):
            mkdir_all_in_root(root, path, 0o755)
    with pytest.raises(NotADirectoryError):
        mkdir_all_in_root(root, "file/x", 0o755)
    with pytest.raises(NotADirectoryError):
        mkdir_all_in_root(root, "file", 0o755)
    with pytest.raises(ValueError, match="null byte"):
        mkdir_all_in_root(root, "a\0b", 0o755)


def test_mkdir_all_dot_dot_after_missing_parts(root: int, tmp_path: Path) -> None:
    assert made(mkdir_all_in_root(root, "x/../y/../../z", 0o755)) == str(tmp_path / "root/z")
