"""What the attack tests share: a rootfs that is quick to make, and specs of containers with a writable one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.rootfs import ETC, FOLDERS
from tests.support.specs import runc_default

APPLETS = (
    "cat chmod cp cut dd echo env grep head id kill ln ls mkdir mknod mount mv od printf ps pwd readlink rm sed sh "
    "sleep sort stat sysctl test touch tr true tty umount unshare wc"
)

ODD: dict[str, Callable[[Path], None]] = {
    "fifo": lambda place: os.mkfifo(place, 0o777),
    "socket": lambda place: os.mknod(place, stat.S_IFSOCK | 0o777),
    "device": lambda place: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 8)),
    "file": lambda place: place.touch(),
    "loop": lambda place: place.symlink_to(place.name),
}
"""Files that are not what the runtime wants to find in their place."""


def small_rootfs(into: Path) -> Path:
    """Busybox with the applets that attackers here use."""
    for name in (*FOLDERS, "tmp"):
        (into / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, text in ETC.items():
        (into / "etc" / name).write_text(text)
    program = shutil.which("busybox")
    assert program is not None, "busybox-static is not installed"
    shutil.copy2(program, into / "bin/busybox")
    for applet in APPLETS.split():
        os.symlink("busybox", into / "bin" / applet)
    return into


def shell(script: str, *, without: str = "", **process: Any) -> dict[str, Any]:
    """A container of root with a writable rootfs; the default mounts at and below ``without`` are left out."""
    spec = runc_default("/bin/sh", "-c", script, rootfs="../rootfs")
    spec["root"]["readonly"] = False
    spec["process"].update(process)
    if without:
        spec["mounts"] = [entry for entry in spec["mounts"] if not entry["destination"].startswith(without)]
    return spec


def sleeper(*capabilities: str) -> dict[str, Any]:
    """A container to attack from, or into, with capabilities beside the default ones."""
    spec = shell("")
    spec["process"]["args"] = ["/bin/sleep", "1000"]
    for kind in spec["process"]["capabilities"].values():
        kind += capabilities
    return spec


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}


def without_namespace(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same, sharing the host's namespace of this kind."""
    spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != kind]
    return spec


def link(place: Path, target: str | Path) -> None:
    """A symbolic link in the place of whatever is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
