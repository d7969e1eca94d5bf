"""The mounts of a create request, with the kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.errors import InvalidArgument, RuntimeFailure
from shimd.linux.mount import is_mount_point
from shimd.runtime.rootfs import RootfsMount, mount_rootfs, unmount_rootfs
from tests.support.requires import requires


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bundle"
    path.mkdir()
    yield path
    assert not is_mount_point(str(path / "rootfs"))


def directory(path: Path, *names: str) -> str:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text(path.name)
    return str(path)


@requires("overlay")
def test_an_overlay_takes_writes_in_its_upper_directory(tmp_path: Path, bundle: Path) -> None:
    lower, upper, work = (directory(tmp_path / name) for name in ("lower", "upper", "work"))
    (tmp_path / "lower" / "low").write_text("low")
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", "index=off")
    made = mount_rootfs(str(bundle), [RootfsMount("overlay", "overlay", "", options)])
    assert (bundle / "rootfs" / "low").read_text() == "low"
    (bundle / "rootfs" / "new").write_text("new")
    unmount_rootfs(str(bundle), made)
    assert (tmp_path / "upper" / "new").read_text() == "new"


@requires("overlay", "kernel:6.8")
def test_an_overlay_of_more_layers_than_fit_one_string(tmp_path: Path, bundle: Path) -> None:
    layers = [directory(tmp_path / f"layer:{i:03}" / ("x" * 100), f"only-{i}", "all") for i in range(60)]
    (Path(layers[0]) / "all").write_text("top")
    value = ":".join(layer.replace(":", "\\:") for layer in layers)
    made = mount_rootfs(str(bundle), [RootfsMount("overlay", "overlay", "", (f"lowerdir={value}",))])
    assert (bundle / "rootfs" / "all").read_text() == "top"
    assert len(list((bundle / "rootfs").glob("only-*"))) == 60
    unmount_rootfs(str(bundle), made)


@requires("overlay", "kernel:6.8")
def test_layers_and_upper_with_paths_over_255_bytes(tmp_path: Path, bundle: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    lower, upper, work = (directory(deep / name, "f") for name in ("lower", "upper", "work"))
    os.unlink(f"{work}/f")
    options = (f"lowerdir={lower}:{directory(deep / 'lower2')}", f"upperdir={upper}", f"workdir={work}")
    made = mount_rootfs(str(bundle), [RootfsMount("overlay", "overlay", "", options)])
    assert (bundle / "rootfs" / "f").read_text() == "upper"
    unmount_rootfs(str(bundle), made)


def test_a_read_only_bind(tmp_path: Path, bundle: Path) -> None:
    source = directory(tmp_path / "source", "file")
    made = mount_rootfs(str(bundle), [RootfsMount("bind", source, "", ("rbind", "ro"))])
    assert (bundle / "rootfs" / "file").read_text() == "source"
    with pytest.raises(OSError, match="Read-only"):
        (bundle / "rootfs" / "new").write_text("")
    unmount_rootfs(str(bundle), made)


@requires("loop", "program:mkfs.ext4")
def test_ext4_in_a_file(tmp_path: Path, bundle: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    made = mount_rootfs(str(bundle), [RootfsMount("ext4", str(image), "", ("loop", "noatime"))])
    (bundle / "rootfs" / "new").write_text("kept")
    unmount_rootfs(str(bundle), made)
    made = mount_rootfs(str(bundle), [RootfsMount("ext4", str(image), "", ("loop", "ro"))])
    assert (bundle / "rootfs" / "new").read_text() == "kept"
    with pytest.raises(OSError, match="Read-only"):
        (bundle / "rootfs" / "new").write_text("")
    unmount_rootfs(str(bundle), made)
    loops = subprocess.run(["losetup", "-j", str(image)], check=True, capture_output=True, text=True).stdout
    assert loops == ""


def test_mounts_stack_in_order_and_a_target_is_inside_of_the_rootfs(tmp_path: Path, bundle: Path) -> None:
    source = directory(tmp_path / "source")
    (tmp_path / "source" / "etc").symlink_to("/inner")
    (tmp_path / "source" / "inner").mkdir()
    mounts = [
        RootfsMount("bind", source, "", ("bind",)),
        RootfsMount("tmpfs", "tmpfs", "/etc", ("size=64k",)),
    ]
    made = mount_rootfs(str(bundle), mounts)
    assert made == ("", "etc")
    assert is_mount_point(str(bundle / "rootfs" / "inner"))
    unmount_rootfs(str(bundle), made)


def test_a_failure_undoes_what_was_mounted(tmp_path: Path, bundle: Path) -> None:
    source = directory(tmp_path / "source")
    mounts = [RootfsMount("bind", source, "", ("bind",)), RootfsMount("tmpfs", "tmpfs", "", ("size=bad",))]
    with pytest.raises(RuntimeFailure, match=r"mount tmpfs tmpfs on .*/rootfs: Invalid argument \(.*size"):
        mount_rootfs(str(bundle), mounts)


def test_errors_name_what_is_missing(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"/nowhere on .*: No such file or directory"):
        mount_rootfs(str(bundle), [RootfsMount("bind", f"{tmp_path}/nowhere", "", ("bind",))])
    with pytest.raises(RuntimeFailure, match=r"mount nofs .*: No such device"):
        mount_rootfs(str(bundle), [RootfsMount("nofs", "x", "", ())])
    with pytest.raises(InvalidArgument, match="size=1"):
        mount_rootfs(str(bundle), [RootfsMount("bind", str(tmp_path), "", ("bind", "size=1"))])


def test_unmounting_is_idempotent(tmp_path: Path, bundle: Path) -> None:
    made = mount_rootfs(str(bundle), [RootfsMount("tmpfs", "tmpfs", "", ())])
    unmount_rootfs(str(bundle), made)
    unmount_rootfs(str(bundle), made)
    (bundle / "rootfs").rmdir()
    unmount_rootfs(str(bundle), made)


def test_a_busy_rootfs_is_detached(bundle: Path) -> None:
    made = mount_rootfs(str(bundle), [RootfsMount("tmpfs", "tmpfs", "", ())])
    with (bundle / "rootfs" / "open").open("w"):
        unmount_rootfs(str(bundle), made)
        assert not is_mount_point(str(bundle / "rootfs"))


def test_a_rootfs_that_is_a_link_is_not_followed(tmp_path: Path, bundle: Path) -> None:
    (bundle / "rootfs").symlink_to(tmp_path)
    with pytest.raises(RuntimeFailure, match="rootfs"):
        mount_rootfs(str(bundle), [RootfsMount("tmpfs", "tmpfs", "", ())])
    assert not is_mount_point(str(tmp_path))
