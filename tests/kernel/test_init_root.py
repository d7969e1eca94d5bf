"""The root of a container: made, entered, parts of it hidden or read-only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shimd.linux.mount import MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE
from shimd.linux.process import CLONE_NEWPID
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import in_rootfs, program, run, shell


def test_program_sees_the_rootfs_and_nothing_of_the_host(busybox: Path) -> None:
    (busybox / "marker").touch()
    outcome = run(*in_rootfs(busybox), *shell("ls -d /marker; cut -d' ' -f5 /proc/self/mountinfo"))
    assert outcome.failure is None
    assert outcome.output.split() == ["/marker", "/", "/proc", "/dev"]


@pytest.mark.parametrize("method", ["pivot", "move"])
@pytest.mark.parametrize("propagation", [MS_SLAVE | MS_REC, MS_PRIVATE | MS_REC, MS_SHARED, MS_SHARED | MS_REC])
def test_every_propagation_and_method_works_and_leaves_the_host_alone(
    busybox: Path, method: str, propagation: int
) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    operations = (rig.prepare(busybox, propagation), rig.PROC, rig.DEV, rig.NULL, ops.PivotRoot(method), ops.Stdio(0))
    outcome = run(*operations, *shell("cat /proc/self/mounts | wc -l; ls /"))
    assert outcome.failure is None
    assert "dev" in outcome.output
    assert Path("/proc/self/mountinfo").read_text() == before


def test_moved_root_leaves_no_full_procfs_or_sysfs_behind(busybox: Path) -> None:
    """Another one could be mounted in a user namespace if one were visible, masked paths or not."""
    operations = (rig.prepare(busybox), rig.PROC, rig.DEV, rig.NULL, ops.PivotRoot("move"), ops.Stdio(0))
    outcome = run(*operations, *shell("grep -c ' - proc ' /proc/self/mountinfo; grep ' - sysfs ' /proc/self/mountinfo"))
    assert outcome.output == "1\n"


def test_chroot_without_a_mount_namespace(busybox: Path) -> None:
    operations = (ops.PrepareRoot(str(busybox), 0, ""), ops.PivotRoot("chroot"))
    with open("/dev/null") as null:
        fds = {"stdin": null.fileno()}
        outcome = run(*operations, ops.Stdio(0), *program("/bin/ls", "/"), clone=CLONE_NEWPID, fds=fds)
    assert outcome.failure is None
    assert "bin" in outcome.output.split()


def test_readonly_root_and_paths(busybox: Path) -> None:
    (busybox / "frozen").mkdir()
    after = (ops.ReadonlyPath("/frozen"), ops.ReadonlyPath("/missing"), ops.FinalizeReadonly("/dev"))
    script = "touch /frozen/x; touch /dev/x; touch /fine && echo fine"
    outcome = run(*in_rootfs(busybox, after=after), *shell(script))
    assert outcome.output.count("Read-only file system") == 2
    assert outcome.output.endswith("fine\n")
    outcome = run(*in_rootfs(busybox, after=(ops.FinalizeReadonly("/"),)), *shell("touch /x"))
    assert "Read-only file system" in outcome.output


def test_readonly_path_keeps_the_flags_of_its_mount(busybox: Path) -> None:
    outcome = run(
        *in_rootfs(busybox, after=(ops.ReadonlyPath("/proc/sys"),)), *shell("grep ' /proc/sys ' /proc/mounts")
    )
    assert set(outcome.output.split()[3].split(",")) >= {"ro", "nosuid", "nodev", "noexec"}


def test_masked_paths_are_empty(busybox: Path) -> None:
    (busybox / "secret").write_text("secret\n")
    for name in ("one", "two"):
        (busybox / name).mkdir()
        (busybox / name / "secret").touch()
    paths = ("/secret", "/one", "/two", "/missing", "/secret/below", "/proc/timer_list")
    script = (
        "cat /secret /proc/timer_list; ls /one /two; touch /one/x; echo x > /two/y; grep -c nr_inodes=1, /proc/mounts"
    )
    outcome = run(*in_rootfs(busybox, after=(ops.MaskPaths(paths, ""),)), *shell(script))
    assert outcome.failure is None
    lines = outcome.output.splitlines()
    assert lines[:3] == ["/one:", "", "/two:"]
    assert sum("Read-only file system" in line for line in lines) == 2


def test_masking_needs_the_null_device_itself(busybox: Path) -> None:
    """CVE-2025-31133: with /dev/null as a link, masking would bind what it leads to, writable."""
    (busybox / "secret").touch()
    for name, target in (("link", "/proc/sys/kernel/core_pattern"), ("zero", None)):
        bad = ops.Symlink("/dev/null", target, replace=True, only_if="") if target else rig.device("/dev/null", 1, 5)
        operations = (rig.prepare(busybox), rig.PROC, rig.DEV, bad, rig.PIVOT, ops.MaskPaths(("/secret",), ""))
        outcome = run(*operations, *program("/bin/true"))
        assert outcome.failure is not None, name
        assert outcome.failure.op == "MaskPaths"


def test_missing_rootfs_is_named() -> None:
    outcome = run(ops.PrepareRoot("/nonexistent", MS_SLAVE | MS_REC, ""), *program("/bin/true"))
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.op, outcome.failure.origin) == (0, "PrepareRoot", "/0")
    assert outcome.failure.errno == errno.ENOENT
    assert "/nonexistent" in outcome.failure.attempt
    assert os.WEXITSTATUS(outcome.status) == 1


def test_directory_is_made_inside_the_root_only(busybox: Path, tmp_path: Path) -> None:
    (busybox / "out").symlink_to(tmp_path)
    outcome = run(*in_rootfs(busybox, ops.MakeDirectory("/out/made/here", 0o755)), *program("/bin/true"))
    assert outcome.failure is None
    assert list(tmp_path.iterdir()) == []
    assert (busybox / str(tmp_path).lstrip("/") / "made/here").is_dir()
