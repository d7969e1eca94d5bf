"""Mounts: what they do, and what a hostile image or volume tries with them."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path

import pytest

from shimd.init import targets
from shimd.init.context import Context, StepFailed
from shimd.init.handshake import Message
from shimd.linux import mount as m
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID, clone3
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.child import run_in_child
from tests.kernel.init_rig import bind, in_rootfs, mount, program, run, shell
from tests.support.rootfs import HOSTILE, Outside

RENAME_EXCHANGE = 2


def options(outcome: rig.Outcome) -> set[str]:
    """Of a line of /proc/mounts."""
    assert outcome.failure is None, outcome.failure
    return set(outcome.output.split()[3].split(","))


def test_tmpfs_with_options_of_both_kinds(busybox: Path) -> None:
    tmpfs = mount("/made/on/the/way", "tmpfs", "size=64k", "mode=711")
    outcome = run(*in_rootfs(busybox, tmpfs), *shell("grep ' /made' /proc/mounts"))
    assert options(outcome) >= {"rw", "nosuid", "nodev", "noexec", "size=64k", "mode=711"}


def test_tmpfs_looks_like_the_directory_it_covers(busybox: Path) -> None:
    (busybox / "covered").mkdir()
    (busybox / "covered").chmod(0o1750)
    tmpfs = (mount("/covered", "tmpfs"), mount("/new", "tmpfs"))
    outcome = run(*in_rootfs(busybox, *tmpfs), *shell("stat -c %a /covered /new"))
    assert outcome.output.split() == ["1750", "1777"]


def test_file_system_explains_a_bad_option(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, mount("/x", "tmpfs", "size=much")), *program("/bin/true"))
    assert outcome.failure is not None
    assert outcome.failure.errno == errno.EINVAL
    assert "size=much" in outcome.failure.attempt
    assert "size" in outcome.failure.text


def test_unknown_file_system_is_named(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, mount("/x", "nosuchfs")), *program("/bin/true"))
    assert outcome.failure is not None
    assert (outcome.failure.errno, "nosuchfs" in outcome.failure.attempt) == (errno.ENODEV, True)


def test_remount_changes_the_file_system(busybox: Path) -> None:
    remount = ops.Remount("/x", ("ro", "size=128k"), rig.QUIET, ())
    outcome = run(*in_rootfs(busybox, mount("/x", "tmpfs", "size=64k"), remount), *shell("grep ' /x ' /proc/mounts"))
    assert options(outcome) >= {"ro", "size=128k"}


def test_copy_up_keeps_everything(busybox: Path) -> None:
    top = busybox / "data"
    (top / "deep").mkdir(parents=True)
    (top / "deep/file").write_text("content\n")
    (top / "deep/file").chmod(0o640)
    os.chown(top / "deep/file", 12, 34)
    (top / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo", 0o600)
    copied = mount("/data", "tmpfs", copy_up=True)
    script = (
        "cat /data/deep/file; stat -c '%a %u %g' /data/deep/file; readlink /data/link; test -p /data/fifo && echo fifo"
    )
    outcome = run(*in_rootfs(busybox, copied), *shell(script + "; echo more >> /data/deep/file"))
    assert outcome.output.splitlines() == ["content", "640 12 34", "/etc/passwd", "fifo"]
    assert (top / "deep/file").read_text() == "content\n"


def test_bind_of_files_and_directories_makes_their_mount_points(busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    binds = (bind(tmp_path, "/a/directory"), bind(tmp_path / "file", "/b/file"))
    outcome = run(*in_rootfs(busybox, *binds), *shell("cat /a/directory/file /b/file"))
    assert outcome.output == "from the host\n" * 2


def test_bind_through_links_stays_inside(busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (busybox / "dangling").symlink_to("/not/there/yet")
    (busybox / "escape").symlink_to("../../../../../../../.." + str(outside))
    binds = (bind(tmp_path / "file", "/dangling"), bind(tmp_path / "file", "/escape/file"))
    outcome = run(*in_rootfs(busybox, *binds), *shell("cat /not/there/yet /escape/file"))
    assert outcome.output == "from the host\n" * 2
    assert list(outside.iterdir()) == []


def test_bind_flags_are_those_listed(busybox: Path, tmp_path: Path) -> None:
    attr = ops.MountAttr(m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOEXEC, m.MOUNT_ATTR_NODEV, 0, recursive=False)
    outcome = run(
        *in_rootfs(busybox, bind(tmp_path, "/x", remount=True, attr=attr)), *shell("grep ' /x ' /proc/mounts")
    )
    assert options(outcome) >= {"ro", "noexec"}
    outcome = run(*in_rootfs(busybox, bind(tmp_path, "/x")), *shell("touch /x/written"))
    assert (tmp_path / "written").exists()


def test_recursive_read_only(busybox: Path, tmp_path: Path) -> None:
    more = (ops.MountAttr(m.MOUNT_ATTR_RDONLY, 0, 0, recursive=True),)
    operations = (rig.prepare(busybox), mount("/volume", "tmpfs"), mount("/volume/below", "tmpfs"))
    again = bind(f"{busybox}/volume", "/again", more=more)
    outcome = run(
        *operations, rig.PROC, rig.DEV, rig.NULL, again, rig.PIVOT, ops.Stdio(0), *shell("touch /again/below/x")
    )
    assert "Read-only" in outcome.output


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_images_reach_nothing_outside(busybox: Path, place: Path, name: str) -> None:
    """Whether the container starts or is refused: the host's folder stays as it was, and /proc is procfs."""
    outside = Outside(place / "outside")
    HOSTILE[name](busybox, outside)
    operations = (
        *(rig.prepare(busybox), rig.PROC, rig.DEV, rig.DEV_PTS, mount("/dev/shm", "tmpfs"), mount("/sys", "sysfs")),
        *(rig.NULL, rig.device("/dev/zero", 1, 5), ops.Symlink("/dev/fd", "/proc/self/fd", replace=False, only_if="")),
        ops.Symlink("/dev/ptmx", "pts/ptmx", replace=True, only_if=""),
        *(bind(busybox / "home", "/mnt/volume"), bind(busybox / "bin/busybox", "/etc/hosts"), rig.PIVOT),
        *(
            ops.Terminal(0, 0, 0, console_device=True),
            ops.ReadonlyPath("/proc/sys"),
            ops.MaskPaths(("/proc/kcore",), ""),
        ),
    )
    outcome = run(*operations, *shell("head -1 /proc/self/stat"), on_message=close_console)
    outside.assert_untouched()
    if name.startswith(("proc", "sys")):
        assert outcome.failure is not None
        assert "must be mounted on ordinary directory" in outcome.failure.text
    else:
        assert outcome.failure is None or outcome.failure.op in ("MakeDevice", "Symlink", "Bind", "Terminal")


def close_console(pid: int, message: Message) -> None:
    if message.kind == "console":
        os.close(message.fd)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/proc", False),
        ("/proc/self", False),
        ("/proc/sys/kernel/core_pattern", False),
        ("/proc/1/attr", False),
        ("/link", False),
        ("/proc/meminfo", True),
        ("/proc/sys/kernel/ns_last_pid", True),
    ],
)
def test_only_known_files_may_cover_proc(busybox: Path, tmp_path: Path, target: str, *, allowed: bool) -> None:
    """CVE-2019-16884: a volume over /proc would take the labels."""
    (busybox / "link").symlink_to("/proc/sys")
    source = tmp_path / "file"
    source.write_text("ours\n")
    source = source if allowed or target.endswith("pattern") else tmp_path
    outcome = run(*in_rootfs(busybox, bind(source, target)), *shell(f"cat {target}"))
    if allowed:
        assert outcome.output == "ours\n"
    else:
        assert outcome.failure is not None
        assert "cannot be mounted because it is" in outcome.failure.text


def test_the_hosts_procfs_may_be_bound_on_proc(busybox: Path) -> None:
    operations = (rig.prepare(busybox), bind("/proc", "/proc"), rig.DEV, rig.NULL, rig.PIVOT, ops.Stdio(0))
    assert run(*operations, *program("/bin/true")).failure is None


def test_rootfs_itself_is_no_destination(busybox: Path, tmp_path: Path) -> None:
    outcome = run(*in_rootfs(busybox, bind(tmp_path, "/usr/..")), *program("/bin/true"))
    assert outcome.failure is not None
    assert "rootfs itself" in outcome.failure.text


def test_mount_point_that_is_moved_away_is_noticed(tmp_path: Path) -> None:
    """CVE-2021-30465: somebody who shares the volume swaps the directory between its lookup and the mount."""

    def check() -> None:
        (tmp_path / "volume").mkdir()
        ctx = Context({})
        ctx.root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        target = targets.open_directory(ctx, "/volume")
        (tmp_path / "volume").rename(tmp_path / "elsewhere")
        (tmp_path / "volume").symlink_to("/etc")
        tree = m.open_tree(m.AT_FDCWD, str(tmp_path), m.OPEN_TREE_CLONE)
        with pytest.raises((StepFailed, FileNotFoundError)):
            targets.attach(ctx, tree, target, "/volume")

    run_in_child(check, CLONE_NEWNS)


def test_swapping_directories_never_leads_out(busybox: Path, place: Path) -> None:
    """The race itself: another process exchanges a directory and a link to the host as fast as it can."""
    outside = Outside(place / "outside")
    volume = place / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to("../" * 20 + str(outside.folder))
    swapper, pidfd = clone3(0)
    if swapper == 0:
        _swap_for_ever(volume)
    try:
        for _ in range(60):
            below = (bind(volume, "/volume"), mount("/volume/a/new/x", "tmpfs"), bind(busybox / "etc", "/volume/a/y"))
            outcome = run(*in_rootfs(busybox, *below), *program("/bin/true"))
            assert outcome.failure is None or outcome.failure.op in ("Mount", "Bind")
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
        os.close(pidfd)
    outside.assert_untouched()


def _swap_for_ever(volume: Path) -> None:
    """In one call, so that there is no moment in which init could make a directory of one of the names."""
    libc = ctypes.CDLL(None)
    a, b = bytes(volume / "a"), bytes(volume / "b")
    while True:
        libc.renameat2(m.AT_FDCWD, a, m.AT_FDCWD, b, RENAME_EXCHANGE)


def test_slot_instead_of_a_source(busybox: Path, tmp_path: Path) -> None:
    """A tree that the runtime opened: its path need not be reachable from inside."""
    (tmp_path / "file").write_text("from a slot\n")
    tree = m.open_tree(m.AT_FDCWD, str(tmp_path), m.OPEN_TREE_CLONE)
    try:
        outcome = run(
            *in_rootfs(busybox, bind("/gone", "/x", slot="mount.0")), *shell("cat /x/file"), fds={"mount.0": tree}
        )
    finally:
        os.close(tree)
    assert outcome.output == "from a slot\n"


def test_missing_slot_is_named(busybox: Path) -> None:
    outcome = run(
        *in_rootfs(busybox, bind("/gone", "/x", slot="mount.7")),
        *program("/bin/true"),
        clone=CLONE_NEWNS | CLONE_NEWPID,
    )
    assert outcome.failure is not None
    assert str(outcome.failure) == "use slot mount.7: not passed by the runtime"


def test_cgroup_view_of_version_1(busybox: Path, tmp_path: Path) -> None:
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    hierarchies = tuple((name, "cgroup", name, str(tmp_path / name)) for name in ("cpu", "memory"))
    view = ops.MountCgroup1("/sys/fs/cgroup", hierarchies, (("cpuacct", "cpu"),), rig.QUIET, (), readonly=True)
    script = "ls /sys/fs/cgroup /sys/fs/cgroup/cpuacct/; touch /sys/fs/cgroup/x"
    outcome = run(*in_rootfs(busybox, mount("/sys", "sysfs"), view), *shell(script))
    assert outcome.output.split()[:8] == [
        "/sys/fs/cgroup:",
        "cpu",
        "cpuacct",
        "memory",
        "/sys/fs/cgroup/cpuacct/:",
        "tasks",
        "touch:",
        "/sys/fs/cgroup/x:",
    ]
    assert "Read-only" in outcome.output
