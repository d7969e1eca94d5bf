from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from shimd.linux import mount as m
from shimd.linux import proc
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID
from tests.kernel.child import run_in_child


def new_tmpfs(**options: str) -> int:
    context = m.fsopen("tmpfs")
    try:
        for key, value in options.items():
            m.fsconfig_string(context, key, value)
        m.fsconfig_create(context)
        return m.fsmount(context, m.MOUNT_ATTR_NOSUID)
    finally:
        os.close(context)


def attach(tree: int, target: Path) -> None:
    m.move_mount(tree, "", m.AT_FDCWD, str(target), m.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def options_of(target: Path) -> set[str]:
    return set(next(entry for entry in proc.mountinfo() if entry.mount_point == str(target)).options.split(","))


def test_new_file_system_is_attached(tmp_path: Path) -> None:
    def check() -> None:
        tree = new_tmpfs(size="64k", mode="0711")
        assert m.statfs_type(tree) == m.TMPFS_MAGIC
        attach(tree, tmp_path)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711
        assert "nosuid" in options_of(tmp_path)
        assert m.is_mount_point(str(tmp_path))
        m.umount2(str(tmp_path), m.UMOUNT_NOFOLLOW)
        assert not m.is_mount_point(str(tmp_path))

    run_in_child(check, CLONE_NEWNS)


def test_detached_mount_ends_with_its_descriptor(tmp_path: Path) -> None:
    tree = new_tmpfs()
    with open("x", "w", opener=lambda path, flags: os.open(path, flags, dir_fd=tree)) as file:
        file.write("inside")
    os.close(tree)
    assert str(tmp_path) not in {entry.mount_point for entry in proc.mountinfo()}


def test_bad_option_is_explained_by_the_log() -> None:
    context = m.fsopen("tmpfs")
    with pytest.raises(OSError, match="size=much") as caught:
        m.fsconfig_string(context, "size", "much")
    assert caught.value.errno == errno.EINVAL
    assert "tmpfs" in m.fs_log(context)
    assert m.fs_log(context) == ""
    with pytest.raises(OSError, match="nonsense"):
        m.fsconfig_flag(context, "nonsense")
    os.close(context)
    with pytest.raises(OSError, match="no_such_fs") as unknown:
        m.fsopen("no_such_fs")
    assert unknown.value.errno == errno.ENODEV


def test_reconfigure_makes_a_superblock_read_only(tmp_path: Path) -> None:
    def check() -> None:
        attach(new_tmpfs(), tmp_path)
        context = m.fspick(m.AT_FDCWD, str(tmp_path), 0)
        m.fsconfig_flag(context, "ro")
        m.fsconfig_reconfigure(context)
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "x").touch()

    run_in_child(check, CLONE_NEWNS)


def test_overlay_layers(tmp_path: Path) -> None:
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    (lower / "file").write_text("below")

    def check() -> None:
        context = m.fsopen("overlay")
        m.fsconfig_string(context, "lowerdir", str(lower))
        m.fsconfig_string(context, "upperdir", str(upper))
        m.fsconfig_string(context, "workdir", str(work))
        m.fsconfig_create(context)
        attach(m.fsmount(context, 0), merged)
        (merged / "file").write_text("above")

    run_in_child(check, CLONE_NEWNS)
    assert ((lower / "file").read_text(), (upper / "file").read_text()) == ("below", "above")


def test_bind_by_open_tree_and_setattr(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def check() -> None:
        tree = m.open_tree(m.AT_FDCWD, str(source), m.OPEN_TREE_CLONE | m.AT_RECURSIVE)
        m.mount_setattr(
            tree, "", m.AT_EMPTY_PATH | m.AT_RECURSIVE, set=m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOATIME,
            clear=m.MOUNT_ATTR__ATIME, propagation=m.MS_SLAVE,
        )  # fmt: skip
        attach(tree, target)
        assert {"ro", "noatime"} <= options_of(target)
        (source / "x").touch()
        with pytest.raises(OSError, match="Read-only"):
            (target / "y").touch()
        m.mount_setattr(m.AT_FDCWD, str(target), 0, clear=m.MOUNT_ATTR_RDONLY)
        (target / "y").touch()

    run_in_child(check, CLONE_NEWNS)
    assert (source / "y").exists()


def test_mount_ids_and_roots(tmp_path: Path) -> None:
    root = os.open("/", os.O_PATH)
    directory = os.open(tmp_path, os.O_PATH)
    try:
        assert m.is_mount_root(root)
        assert not m.is_mount_root(directory)
        assert m.mount_id(root) in {entry.mount_id for entry in proc.mountinfo() if entry.mount_point == "/"}
    finally:
        os.close(root)
        os.close(directory)
    assert not m.is_mount_point(str(tmp_path / "missing"))
    assert not m.is_mount_point("/etc/passwd/below")
    assert m.is_mount_point("/proc")


def test_classic_mount_and_pivot_root(tmp_path: Path) -> None:
    def check() -> None:
        m.mount("tmpfs", str(tmp_path), "tmpfs", m.MS_NODEV, "size=64k")
        (tmp_path / "marker").touch()
        os.chdir(tmp_path)
        m.pivot_root(".", ".")
        m.umount2(".", m.MNT_DETACH)
        os.chdir("/")
        assert os.listdir("/") == ["marker"]

    run_in_child(check, CLONE_NEWNS)


def test_errors_name_the_path(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for call in (
        lambda: m.open_tree(m.AT_FDCWD, missing, 0),
        lambda: m.umount2(missing, 0),
        lambda: m.mount("none", missing, "tmpfs", 0),
        lambda: m.mount_setattr(m.AT_FDCWD, missing, 0, set=1),
        lambda: m.fspick(m.AT_FDCWD, missing, 0),
        lambda: m.pivot_root(missing, missing),
        lambda: m.move_mount(m.AT_FDCWD, "/proc", m.AT_FDCWD, missing, 0),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == missing


def test_verified_procfs_ignores_what_is_mounted_over_proc() -> None:
    def check() -> None:
        m.mount("none", "/proc/sys", "tmpfs", 0)
        assert not os.path.exists("/proc/sys/kernel")
        procfs = proc.open_verified_procfs(subset_pid=False)
        value = proc.open_below(procfs, "sys/kernel/ostype", os.O_RDONLY)
        assert os.read(value, 100) == b"Linux\n"

    run_in_child(check, CLONE_NEWNS)


def test_verified_procfs_shows_the_own_pid_namespace() -> None:
    def check() -> None:
        procfs = proc.open_verified_procfs()
        status = proc.open_below(procfs, "1/comm", os.O_RDONLY)
        assert os.read(status, 100)
        assert not os.access("sys", os.F_OK, dir_fd=procfs)

    run_in_child(check, CLONE_NEWNS | CLONE_NEWPID)


def test_verified_procfs_falls_back_and_refuses_fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: bool) -> int:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(proc, "_new_procfs", refuse)
    real = proc.open_verified_procfs()
    assert m.statfs_type(real) == m.PROC_SUPER_MAGIC
    os.close(real)

    def check() -> None:
        m.mount("none", "/proc/sys", "tmpfs", 0)
        procfs = proc.open_verified_procfs()
        with pytest.raises(OSError, match="cross-device"):
            proc.open_below(procfs, "sys", os.O_RDONLY)
        m.mount("none", "/proc", "tmpfs", 0)
        with pytest.raises(OSError, match="not a procfs"):
            proc.open_verified_procfs()

    run_in_child(check, CLONE_NEWNS)
