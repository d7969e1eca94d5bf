"""Images that attack whoever makes a container of them: links, pipes and devices where something else is wanted.

Every test mounts its attack with a writable rootfs and root in the container. It must end in a refusal that names the
field or the path, or in a container that does no harm; what is outside of the rootfs is as before.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.runtime.container import Stdio
from shimd.runtime.direct import DirectLauncher
from tests.kernel.attack import ODD, bind, link, shell, small_rootfs
from tests.kernel.runtime_rig import Rig
from tests.support import wait
from tests.support.rootfs import HOSTILE, Outside

ORDINARY = "must be mounted on ordinary directory"
NOT_IN_PROC = "cannot be mounted because it is inside /proc"


@pytest.fixture
def rootfs(place: Path) -> Path:
    return small_rootfs(place / "rootfs")


@pytest.fixture
def rig(place: Path, rootfs: Path, container_id: str) -> Rig:
    return Rig(probe(), DirectLauncher(), place, container_id)


@pytest.fixture
def outside(place: Path) -> Iterator[Outside]:
    """Unchanged at the end of every test."""
    folder = Outside(place / "outside")
    yield folder
    folder.assert_untouched()


# ---- links ----------------------------------------------------------------------------------------------------------

# CVE-2019-18837, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867, CVE-2026-41579, CVE-2026-47766: how each prepared
# rootfs is met, with the default mounts and without those on /dev. "" is a container that runs.
_DEV_LINK = "make device /dev/null.*Too many levels of symbolic links"
_DIFFERENT = "make device /dev/null: there is a different file already"
OUTCOMES = {
    "proc leads out": (rf"\(/mounts/0\): mount proc on /proc: .*{ORDINARY}",) * 2,
    "proc leads up and out": (rf"\(/mounts/0\): mount proc on /proc: .*{ORDINARY}",) * 2,
    "proc leads to another folder": (rf"\(/mounts/0\): mount proc on /proc: .*{ORDINARY}",) * 2,
    "proc leads to itself": (rf"\(/mounts/0\): mount proc on /proc: .*{ORDINARY}",) * 2,
    "sys leads out": (rf"\(/mounts/5\): mount sysfs on /sys: .*{ORDINARY}", rf"mount sysfs on /sys: .*{ORDINARY}"),
    "sys leads to another folder": (rf"mount sysfs on /sys: .*{ORDINARY}",) * 2,
    "dev leads out": (_DEV_LINK, _DEV_LINK),
    "dev leads up and out": (_DEV_LINK, _DEV_LINK),
    "dev/null leads out": ("", _DIFFERENT),
    "dev/null leads nowhere": ("", _DIFFERENT),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_links_in_the_image_lead_nowhere(rig: Rig, rootfs: Path, outside: Outside, name: str) -> None:
    HOSTILE[name](rootfs, outside)
    for spec, refusal in zip(
        (shell("echo in"), shell("echo in", without="/dev")), OUTCOMES.get(name, ("", "")), strict=True
    ):
        if refusal:
            with pytest.raises(RuntimeFailure, match=refusal):
                rig.create(spec)
        else:
            assert rig.run(spec) == (0, "in\n")
        assert not rig.state_dir().exists()


TARGETS = {
    "absolute": "{outside}",
    "up": "../../../../../../../..{outside}",
    "nowhere": "{outside}/new",
    "magic": "/proc/1/root{outside}",
}


@pytest.mark.parametrize("kind", TARGETS)
def test_mount_targets_behind_links_stay_inside(rig: Rig, rootfs: Path, outside: Outside, kind: str) -> None:
    """CVE-2019-18837: the target is made, and mounted on, where the link leads to inside of the rootfs."""
    link(rootfs / "mnt", TARGETS[kind].format(outside=outside.folder))
    spec = shell("echo data > /mnt/deep/er/file; grep -c /deep/er /proc/self/mountinfo")
    spec["mounts"].append({"destination": "/mnt/deep/er", "type": "tmpfs", "source": "tmpfs"})
    if kind == "magic":  # leads to the rootfs itself at best; but links of procfs are not followed at all
        with pytest.raises(RuntimeFailure, match=r"\(/mounts/7\).*Too many levels of symbolic links"):
            rig.create(spec)
    else:
        assert rig.run(spec) == (0, "1\n")
        assert (rootfs / str(outside.folder).lstrip("/")).is_dir()


def test_cve_2025_24965_a_file_is_made_for_a_bind_only_inside(rig: Rig, rootfs: Path, outside: Outside) -> None:
    link(rootfs / "etc/resolv.conf", outside.folder / "made")
    spec = shell("cat /etc/resolv.conf")
    spec["mounts"].append(bind(rig.place / "hosts", "/etc/resolv.conf"))
    (rig.place / "hosts").write_text("bound\n")
    assert rig.run(spec) == (0, "bound\n")


def test_cve_2025_24965_a_working_directory_is_made_only_inside(rig: Rig, rootfs: Path, outside: Outside) -> None:
    link(rootfs / "mnt", outside.folder)
    assert rig.run(shell("pwd -P", cwd="/mnt/new/deep")) == (0, f"{outside.folder}/new/deep\n")


def test_cve_2025_24965_what_a_tmpfs_copies_is_inside(rig: Rig, rootfs: Path, outside: Outside) -> None:
    """With tmpcopyup a path of the image is read from, and written to: a link of it, or in it, leads nowhere."""
    (rootfs / "data").mkdir()
    for place in ("mnt", "data/out"):
        link(rootfs / place, outside.folder)
    (rootfs / str(outside.folder).lstrip("/")).mkdir(parents=True)
    spec = shell("find /mnt/ /data/ ! -type d; cat /mnt/secret; touch /data/out/x /mnt/x")
    for target in ("/mnt", "/data"):
        entry = {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
        spec["mounts"].append(entry)
    assert rig.run(spec) == (0, "/data/out\ncat: can't open '/mnt/secret': No such file or directory\n")


def test_cve_2019_19921_a_volume_under_a_link_at_proc(rig: Rig, rootfs: Path, outside: Outside) -> None:
    """The image's /proc is a link into a volume, where a copy of /proc that nobody masks would appear."""
    link(rootfs / "proc", "/volume/proc")
    spec = shell("true")
    (rig.place / "volume/proc").mkdir(parents=True)
    spec["mounts"].insert(0, bind(rig.place / "volume", "/volume"))
    with pytest.raises(RuntimeFailure, match=rf"\(/mounts/1\): mount proc on /proc: .*{ORDINARY}"):
        rig.create(spec)
    assert os.listdir(rig.place / "volume/proc") == []


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/proc/1/attr", "/proc/sys"])
def test_cve_2019_16884_nothing_is_mounted_over_proc_behind_a_link(rig: Rig, rootfs: Path, target: str) -> None:
    """A label or a limit written to such a /proc would go nowhere."""
    link(rootfs / "volume", target)
    spec = shell("true")
    spec["mounts"].append({"destination": "/volume", "type": "tmpfs", "source": "tmpfs"})
    with pytest.raises(RuntimeFailure, match=r"\(/mounts/7\).*(cannot be mounted because|Too many levels)"):
        rig.create(spec)


def test_cve_2019_16884_nothing_is_mounted_over_proc_by_its_name(rig: Rig, outside: Outside) -> None:
    for destination in ("/proc/self/attr", "/proc/sys", "/proc/../proc/1", "/x/../proc/sys/kernel"):
        spec = shell("true")
        spec["mounts"].append(bind(outside.folder, destination))
        with pytest.raises(InvalidSpec, match=f"/mounts/7/destination: .*{NOT_IN_PROC}"):
            rig.create(spec)
    spec = shell("true")
    spec["mounts"].append(bind(outside.folder, "/proc"))
    with pytest.raises(RuntimeFailure, match=r"\(/mounts/7\): mount on /proc: .*not of type proc"):
        rig.create(spec)


def test_the_top_of_the_rootfs_is_no_destination(rig: Rig, rootfs: Path, outside: Outside) -> None:
    link(rootfs / "mnt", "/")
    spec = shell("true")
    spec["mounts"].append(bind(outside.folder, "/mnt"))
    with pytest.raises(RuntimeFailure, match="the rootfs itself cannot be a mount destination"):
        rig.create(spec)
    spec["mounts"][-1]["destination"] = "/mnt/.."
    with pytest.raises(InvalidSpec, match=r"/mounts/7/destination: .*top of the rootfs"):
        rig.create(spec)


# ---- masks ----------------------------------------------------------------------------------------------------------


def volume_at_dev(rig: Rig) -> dict[str, Any]:
    """Nodes of ours are not made then: what /dev/null is, is up to the volume."""
    spec = shell("true", without="/dev")
    spec["mounts"].append(bind(rig.place / "dev", "/dev"))
    (rig.place / "dev").mkdir()
    return spec


NOT_NULL = r"\(/linux/maskedPaths\): open /dev/null: it is not the null device"


@pytest.fixture
def null() -> Iterator[Stdio]:
    """Streams, so that nothing but the mask needs the container's /dev/null."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield Stdio(fd, fd, fd)
    os.close(fd)


@pytest.mark.parametrize("target", ["/proc/sys/kernel/core_pattern", "zero", "/etc/passwd", "null"])
def test_cve_2025_31133_a_mask_is_never_a_link_of_the_image(rig: Rig, null: Stdio, target: str) -> None:
    """The mask would be a writable bind of whatever the attacker wants to write to."""
    spec = volume_at_dev(rig)
    link(rig.place / "dev/null", target)
    with pytest.raises(RuntimeFailure, match=NOT_NULL):
        rig.create(spec, stdio=null)


@pytest.mark.parametrize("kind", ["device", "file", "fifo"])
def test_cve_2025_31133_a_mask_is_never_another_file(rig: Rig, null: Stdio, kind: str) -> None:
    spec = volume_at_dev(rig)
    ODD[kind](rig.place / "dev/null")
    with pytest.raises(RuntimeFailure, match=NOT_NULL):
        rig.create(spec, stdio=null)


@pytest.mark.parametrize("kind", ["device", "file", "fifo", "loop"])
def test_streams_are_never_another_file(rig: Rig, kind: str) -> None:
    """A stream that nobody passes is the container's null device, and nothing that only has its name."""
    spec = volume_at_dev(rig)
    ODD[kind](rig.place / "dev/null")
    with pytest.raises(RuntimeFailure, match="open /dev/null: No such file"):
        rig.create(spec)


def test_cve_2025_62161_masked_and_readonly_paths_behind_links(rig: Rig, rootfs: Path, outside: Outside) -> None:
    """What they hide or protect is inside, wherever the image's links point."""
    link(rootfs / "mask", "/bin/../hidden")
    link(rootfs / "masked", outside.folder)
    link(rootfs / "readonly", "../../../.." + str(outside.folder) + "/folder")
    (rootfs / "hidden").write_text("inner\n")
    (rootfs / str(outside.folder).lstrip("/") / "folder").mkdir(parents=True)
    spec = shell("cat /mask /hidden; ls /masked; touch /readonly/x 2>/dev/null || echo kept")
    spec["linux"]["readonlyPaths"].append("/readonly")
    spec["linux"]["maskedPaths"] += ["/mask", "/masked"]
    assert rig.run(spec) == (0, "kept\n")
    assert (rootfs / "hidden").read_text() == "inner\n"


def test_masks_hold_against_the_containers_root(rig: Rig) -> None:
    """No capability of the default set gets one off, and what is below cannot be reached by another name."""
    script = "cd /proc; cat keys timer_list self/root/proc/keys 1/root/proc/timer_list | wc -c; umount /proc/keys"
    assert rig.run(shell(f"{script}; ls /sys/firmware")) == (
        0,
        "0\numount: can't unmount /proc/keys: Operation not permitted\n",
    )


# ---- files that are no files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "mnt"])
def test_something_else_in_the_place_of_a_directory(rig: Rig, rootfs: Path, name: str) -> None:
    (rootfs / name).rmdir()
    spec = shell("true")
    spec["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"})
    refusal = rf"\(/mounts/\d\).*/{name}.*(ordinary directory|Not a directory|Too many levels)"
    for make in ODD.values():
        make(rootfs / name)
        with pytest.raises(RuntimeFailure, match=refusal):
            rig.create(spec)
        (rootfs / name).unlink()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_something_else_as_the_target_of_a_file(rig: Rig, rootfs: Path, kind: str) -> None:
    """It is covered, and never opened: a pipe would block, a device could do anything."""
    (rootfs / "etc/hosts").unlink()
    ODD[kind](rootfs / "etc/hosts")
    (rig.place / "hosts").write_text("bound\n")
    spec = shell("cat /etc/hosts")
    spec["mounts"].append(bind(rig.place / "hosts", "/etc/hosts"))
    assert rig.run(spec) == (0, "bound\n")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop"])
def test_cve_2026_47262_passwd_is_not_waited_for(rig: Rig, rootfs: Path, kind: str) -> None:
    (rootfs / "etc/passwd").unlink()
    ODD[kind](rootfs / "etc/passwd")
    assert rig.run(shell("echo $HOME")) == (0, "/\n")


def test_cve_2026_47262_an_enormous_passwd_costs_nothing(rig: Rig, rootfs: Path) -> None:
    """A sparse file of a tebibyte without a line, then root's entry far behind what is read; in 8 MiB of memory."""
    with open(rootfs / "etc/passwd", "r+b") as file:
        file.truncate(1 << 40)
        file.write(b"x" * 4096)
    spec = shell("echo $HOME")
    spec["linux"]["resources"]["memory"] = {"limit": 8 << 20}
    assert rig.run(spec) == (0, "/\n")


@pytest.mark.parametrize("home", [b"/ro\0ot", b"/a\xff\xfe", b"=", b"", b"/x\r"])
def test_a_home_of_the_images_choice_is_only_a_string(rig: Rig, rootfs: Path, home: bytes) -> None:
    (rootfs / "etc/passwd").write_bytes(b"root:x:0:0:root:" + home + b":/bin/sh\n")
    with rig.output() as output:
        container = rig.create(shell('printf %s "$HOME" | od -An -tx1'), stdio=output.stdio())
        rig.runtime.start(container)
        text = output.text()
        assert rig.wait(container) == 0
        rig.runtime.delete(container)
    assert bytes.fromhex(text) == (b"/" if not home or b"\0" in home else home)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop", "directory"])
def test_a_program_that_is_none(rig: Rig, rootfs: Path, kind: str) -> None:
    if kind == "directory":
        (rootfs / "program").mkdir()
    else:
        ODD[kind](rootfs / "program")
    spec = shell("")
    spec["process"]["args"] = ["/program"]
    with pytest.raises(RuntimeFailure, match=r"exec.*/program.*(permission denied|is a directory|too many levels)"):
        rig.runtime.delete(rig.create(spec, gate=False), force=True)


# ---- terminals ------------------------------------------------------------------------------------------------------


def test_cve_2025_52565_console_is_mounted_inside(rig: Rig, rootfs: Path, outside: Outside) -> None:
    """Without a tmpfs on /dev the image decides what /dev/console is: the pty covers the link, not its target."""
    link(rootfs / "dev/console", outside.folder / "secret")
    spec = shell("test -c /dev/console && echo covered", terminal=True, without="/dev")
    spec["mounts"].append(
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}
    )
    container = rig.create(spec)
    with os.fdopen(container.take_console(), "rb", buffering=0) as console:
        rig.runtime.start(container)
        wait.read_until(console.fileno(), b"covered")
    rig.wait(container)
    rig.runtime.delete(container)


@pytest.mark.parametrize("kind", ["fifo", "device", "file", "loop"])
def test_cve_2025_52565_a_ptmx_of_the_images_own(rig: Rig, rootfs: Path, kind: str) -> None:
    (rootfs / "dev/pts").mkdir()
    ODD[kind](rootfs / "dev/pts/ptmx")
    with pytest.raises(
        RuntimeFailure, match=r"\(/process/terminal\).*/dev/pts/ptmx.*(not the pty multiplexer|Too many)"
    ):
        rig.create(shell("true", terminal=True, without="/dev"))


def test_cve_2025_52565_a_ptmx_that_no_devpts_has(rig: Rig, rootfs: Path) -> None:
    """The right numbers are not enough: this one would allocate in the host's devpts."""
    (rootfs / "dev/pts").mkdir()
    os.mknod(rootfs / "dev/pts/ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))
    with pytest.raises(RuntimeFailure, match="it is not the pty multiplexer of a devpts file system"):
        rig.create(shell("true", terminal=True, without="/dev"))
