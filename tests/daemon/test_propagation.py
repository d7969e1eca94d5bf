"""Mounts made after the start: which reach the container, and which of the container's reach the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.boxes import Box, MakeBox, shell
from tests.support.specs import runc_default


@pytest.fixture
def host(place: Path) -> Iterator[Path]:
    """A folder that is a shared mount with an empty folder in it."""
    folder = place / "host"
    folder.mkdir()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "--make-shared", folder], check=True)
    (folder / "here").mkdir()
    yield folder
    subprocess.run(["umount", "--recursive", folder], check=True)


def _box(box: MakeBox, host: Path, propagation: str) -> Box:
    spec: dict[str, Any] = runc_default("sleep", "1000")
    options = ["rbind", propagation]
    spec["linux"]["rootfsPropagation"] = propagation  # as engines do, for the mounts cannot propagate further than /
    spec["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(host), "options": options})
    b = box(spec=spec)
    b.make()
    b.start()
    return b


def _exec(b: Box, script: str, *capabilities: str) -> int:
    sets = {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")}
    b.exec("e", *shell(script), process={"capabilities": sets})
    b.start("e")
    code = b.wait("e")
    b.delete("e")
    return code


@pytest.mark.parametrize(("propagation", "arrives"), [("rslave", True), ("rshared", True), ("rprivate", False)])
def test_from_the_host(box: MakeBox, host: Path, propagation: str, arrives: bool) -> None:  # noqa: FBT001  # pytest's
    b = _box(box, host, propagation)
    subprocess.run(["mount", "-t", "tmpfs", "late", host / "here"], check=True)
    assert _exec(b, "grep -q ' /mnt/here ' /proc/self/mountinfo") == (0 if arrives else 1)
    b.kill()
    b.wait()
    b.delete()


@pytest.mark.parametrize(("propagation", "arrives"), [("rslave", False), ("rshared", True), ("rprivate", False)])
def test_from_the_container(box: MakeBox, host: Path, propagation: str, arrives: bool) -> None:  # noqa: FBT001  # pytest's
    b = _box(box, host, propagation)
    assert _exec(b, "mount -t tmpfs late /mnt/here", "CAP_SYS_ADMIN") == 0
    assert os.path.ismount(host / "here") is arrives
    b.kill()
    b.wait()
    b.delete()


def test_nothing_of_the_container_reaches_the_host_by_default(box: MakeBox, host: Path) -> None:
    """Even when its rootfs is on a shared mount of the host."""
    b = box("sleep", "1000")
    rootfs = host / "here"
    subprocess.run(["cp", "-a", f"{b.bundle.parent}/rootfs/.", rootfs], check=True)
    config = (b.bundle / "config.json").read_text().replace(f"{b.bundle.parent}/rootfs", str(rootfs))
    (b.bundle / "config.json").write_text(config.replace('"readonly": true', '"readonly": false'))
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    b.make()
    b.start()
    assert _exec(b, "mount -t tmpfs late /mnt", "CAP_SYS_ADMIN") == 0
    with open("/proc/self/mountinfo") as file:
        assert file.read() == before
    b.kill()
    b.wait()
    b.delete()


def test_user_namespace_on_shared_mounts(box: MakeBox, host: Path) -> None:
    """Rootfs and sources are opened outside of it: they get what is mounted on the host, and nothing goes back."""
    spec: dict[str, Any] = runc_default("sleep", "1000")
    spec["root"]["readonly"] = False
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"]
    spec["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(host), "options": ["rbind"]})
    b = box(spec=spec)
    rootfs = host / "rootfs"
    subprocess.run(["cp", "-a", f"{b.bundle.parent}/rootfs", rootfs], check=True)
    config = (b.bundle / "config.json").read_text().replace(f"{b.bundle.parent}/rootfs", str(rootfs))
    (b.bundle / "config.json").write_text(config)
    (host / "there").mkdir()
    b.make()
    b.start()
    subprocess.run(["mount", "-t", "tmpfs", "late", host / "here"], check=True)
    assert _exec(b, "grep -q ' /mnt/here ' /proc/self/mountinfo") == 0
    assert _exec(b, "mount -t tmpfs late /mnt/there", "CAP_SYS_ADMIN") == 0
    assert not os.path.ismount(host / "there")
    b.kill()
    b.wait()
    b.delete()
