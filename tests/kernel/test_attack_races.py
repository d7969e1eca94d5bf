"""Another process swaps directories, links and devices in a volume or rootfs while containers are made of it."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shimd.host.facts import probe
from shimd.runtime.container import Stdio
from shimd.runtime.dialogue import InitFailed
from shimd.runtime.direct import DirectLauncher
from tests.kernel.attack import bind, link, shell, small_rootfs
from tests.kernel.runtime_rig import Rig
from tests.support.rootfs import Outside

ROUNDS = 40  # of each of the races
AT_HOME = "test ! -e /secret && test ! -e /outside && test -e /bin/busybox"
_RENAME_EXCHANGE = 2


@pytest.fixture
def rig(place: Path, container_id: str) -> Rig:
    small_rootfs(place / "rootfs")
    (place / "volume").mkdir()
    return Rig(probe(), DirectLauncher(), place, container_id)


@pytest.fixture
def outside(place: Path) -> Iterator[Outside]:
    folder = Outside(place / "outside")
    yield folder
    folder.assert_untouched()
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder.folder) in line]


@contextmanager
def swapping(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """A process exchanges the two names of each pair, as fast as it can."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = [(bytes(one), bytes(other)) for one, other in pairs]
    pid = os.fork()
    if pid == 0:
        while True:
            for one, other in names:
                libc.renameat2(-100, one, -100, other, _RENAME_EXCHANGE)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def rounds(rig: Rig, spec: dict[str, Any], stdio: Stdio = Stdio()) -> Counter[str]:  # noqa: B008
    """How often containers ran, and how often they were refused, by the reason."""
    outcomes: Counter[str] = Counter()
    for _ in range(ROUNDS):
        try:
            container = rig.create(spec, stdio=stdio, gate=False)
        except InitFailed as refused:
            outcomes[str(refused)] += 1
        else:
            outcomes[f"exit code {rig.wait(container)}"] += 1
            rig.runtime.delete(container)
    return outcomes


def up_to(folder: Path) -> str:
    return "../../../../../../../../../.." + str(folder)


@pytest.mark.parametrize("kind", ["absolute", "up"])
def test_cve_2021_30465_cve_2024_45310_mount_targets(rig: Rig, outside: Outside, kind: str) -> None:
    """Directories of a mount target become links to the host's, below and at the place where they are made."""
    volume = rig.place / "volume"
    (volume / "a/b").mkdir(parents=True)
    (volume / "x").mkdir()
    target = str(outside.folder) if kind == "absolute" else up_to(outside.folder)
    link(volume / "evil", target)
    link(volume / "evil2", f"{target}/folder")
    spec = shell(AT_HOME)
    spec["mounts"] += [
        bind(volume, "/vol"),
        {"destination": "/vol/a/b/c/d", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/vol/x", "type": "tmpfs", "source": "tmpfs"},
        bind("/etc/hostname", "/vol/a/b/file"),
    ]
    with swapping((volume / "a", volume / "evil"), (volume / "x", volume / "evil2")):
        outcomes = rounds(rig, spec)
    assert "exit code 0" in outcomes, outcomes
    assert not [text for text in outcomes if text.startswith("exit code") and text != "exit code 0"], outcomes


def test_cve_2019_19921_proc_and_sys(rig: Rig, outside: Outside) -> None:
    rootfs = rig.place / "rootfs"
    for name in ("proc", "sys"):
        link(rootfs / f"evil-{name}", up_to(outside.folder))
    with swapping((rootfs / "proc", rootfs / "evil-proc"), (rootfs / "sys", rootfs / "evil-sys")):
        outcomes = rounds(rig, shell(AT_HOME))
    for text in outcomes:
        assert text == "exit code 0" or "ordinary directory" in text or "/sys" in text or "/proc" in text, outcomes


def test_cve_2025_31133_null_of_a_shared_dev(rig: Rig, outside: Outside) -> None:
    """What a mask is made of is the null device, or there is no container."""
    folder = rig.place / "volume"
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    link(folder / "evil", "/proc/sys/kernel/core_pattern")
    (folder / "file").write_text("")
    spec = shell("test $(stat -c %t:%T /proc/keys) = 1:3", without="/dev")
    spec["mounts"].append(bind(folder, "/dev"))
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with swapping((folder / "null", folder / "evil"), (folder / "null", folder / "file")):
            outcomes = rounds(rig, spec, Stdio(null, null, null))
    finally:
        os.close(null)
    for text in outcomes:
        assert text == "exit code 0" or "not the null device" in text, outcomes


def test_cve_2026_41579_dev_of_the_image(rig: Rig, outside: Outside) -> None:
    """Nodes and links are made, and an old ptmx removed, in a directory that is sometimes the host's."""
    rootfs = rig.place / "rootfs"
    folder = outside.folder / "folder"
    for name in ("null", "ptmx"):
        (folder / name).write_text("keep")
    link(rootfs / "evil", up_to(folder))
    with swapping((rootfs / "dev", rootfs / "evil")):
        outcomes = rounds(rig, shell("test -c /dev/null", without="/dev"))
    assert [(path.name, path.read_text()) for path in sorted(folder.iterdir())] == [("null", "keep"), ("ptmx", "keep")]
    for path in folder.iterdir():
        path.unlink()
    for text in outcomes:
        assert text.startswith("exit code") or "symbolic links" in text or "/dev" in text, outcomes


def test_cve_2025_62161_masked_and_readonly_paths(rig: Rig, outside: Outside) -> None:
    volume = rig.place / "volume"
    for name in ("hidden", "kept"):
        (volume / name).mkdir()
        (volume / name / "file").write_text("")
        link(volume / f"evil-{name}", up_to(outside.folder))
    spec = shell(AT_HOME)
    spec["mounts"].append(bind(volume, "/vol"))
    spec["linux"]["maskedPaths"].append("/vol/hidden")
    spec["linux"]["readonlyPaths"].append("/vol/kept")
    with swapping((volume / "hidden", volume / "evil-hidden"), (volume / "kept", volume / "evil-kept")):
        outcomes = rounds(rig, spec)
    for text in outcomes:
        assert text == "exit code 0" or "(/linux/" in text, outcomes
