"""Root file systems for containers: busybox (made anew in milliseconds), Debian minbase (cached), and hostile ones."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import session

FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "etc", "root", "home", "mnt", "run", "var/tmp")
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/home:/bin/sh\n"
    "user:x:1000:1000:user:/home/user:/bin/sh\n",
    "group": "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n",
    "hostname": "busybox\n",
    "resolv.conf": "",
}


def busybox_rootfs(into: Path) -> Path:
    """A fresh, writable rootfs in the new folder ``into``: static busybox with a link for each of its applets."""
    into.mkdir(mode=0o755)
    for name in FOLDERS:
        (into / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    (into / "tmp").mkdir()
    (into / "tmp").chmod(0o1777)  # mkdir would apply the umask
    (into / "home/user").mkdir()
    for name, text in ETC.items():
        (into / "etc" / name).write_text(text)
    program = shutil.which("busybox")
    assert program is not None, "busybox-static is not installed"
    # A copy, not a hard link: a container's root may write to it.
    shutil.copy2(program, into / "bin/busybox")
    for applet in _applets(program):
        if applet != "bin/busybox":
            os.symlink(os.path.relpath("bin/busybox", os.path.dirname(applet)), into / applet)
    return into


@functools.cache
def _applets(program: str) -> tuple[str, ...]:
    """The paths of the applets in a rootfs, without a leading slash."""
    paths = subprocess.run([program, "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    known = tuple(f"{name}/" for name in FOLDERS)
    return tuple(path if path.startswith(known) else f"bin/{os.path.basename(path)}" for path in paths)


def debian_rootfs() -> Path:
    """Debian minbase of this machine's own release and mirror; shared by all tests, so mount it read-only or below an
    overlay.
    """
    suite = _release()
    place = session.cache_dir() / f"debian-{suite}-{platform.machine()}"
    with session.locked(place.name):
        if not place.exists():
            _debootstrap(suite, place)
    return place


def _debootstrap(suite: str, place: Path) -> None:
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed; debootstrap unmounts what it mounts
    command = ["debootstrap", "--variant=minbase", suite, str(partial), _mirror(suite)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{output}")
    for archive in (partial / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    partial.chmod(0o755)
    partial.rename(place)


def _release() -> str:
    fields = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return fields["VERSION_CODENAME"].strip('"')


def _mirror(suite: str) -> str:
    """Where apt fetches ``suite`` from on this machine."""
    for uri, suites in _apt_sources():
        if suite in suites:
            return uri
    raise RuntimeError(f"no source of {suite} in /etc/apt/sources.list*")


def _apt_sources() -> Iterator[tuple[str, list[str]]]:
    """(URI, suites) of every binary source in either format of sources.list(5)."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if "deb" in fields.get("Types", "").split():
                yield from ((uri, fields.get("Suites", "").split()) for uri in fields.get("URIs", "").split())
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))):
        if path.exists():
            found = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", path.read_text(), re.MULTILINE)
            yield from ((uri, [suite]) for uri, suite in found)


class Outside:
    """A folder of the host that no container may reach; ``assert_untouched`` after the attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        (folder / "secret").write_text("host's own\n")
        (folder / "folder").mkdir()
        self._before = self._state()

    def _state(self) -> list[tuple[str, int, int, int, bytes]]:
        rows = []
        for path in sorted([self.folder, *self.folder.rglob("*")]):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            rows.append((str(path), info.st_mode, info.st_uid, info.st_gid, content))
        return rows

    def assert_untouched(self) -> None:
        assert self._state() == self._before


def _link(path: str, target: str) -> Callable[[Path, Outside], None]:
    """Replace ``path`` of the rootfs by a symbolic link; ``{outside}`` and ``{up}`` in ``target`` are filled in."""

    def apply(rootfs: Path, outside: Outside) -> None:
        place = rootfs / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * 20 + str(outside.folder).lstrip("/")
        place.symlink_to(target.format(outside=outside.folder, up=up))

    return apply


HOSTILE: dict[str, Callable[[Path, Outside], None]] = {
    "proc leads out": _link("proc", "{outside}/folder"),
    "proc leads up and out": _link("proc", "{up}/folder"),
    "proc leads to another folder": _link("proc", "/tmp"),
    "proc leads to itself": _link("proc", "/proc"),
    "sys leads out": _link("sys", "{outside}/folder"),
    "sys leads to another folder": _link("sys", "/tmp"),
    "dev leads out": _link("dev", "{outside}/folder"),
    "dev leads up and out": _link("dev", "{up}/folder"),
    "dev/null leads out": _link("dev/null", "{outside}/secret"),
    "dev/null leads nowhere": _link("dev/null", "{outside}/new"),
    "dev/pts leads out": _link("dev/pts", "{outside}/folder"),
    "dev/shm leads up and out": _link("dev/shm", "{up}/folder"),
    "dev/ptmx leads out": _link("dev/ptmx", "{outside}/secret"),
    "dev/console leads out": _link("dev/console", "{outside}/secret"),
    "etc leads out": _link("etc", "{outside}/folder"),
    "mnt leads out": _link("mnt", "{outside}/folder"),
    "mnt leads up and out": _link("mnt", "{up}/folder"),
    "run leads to the host's proc": _link("run", "/proc/1/root"),
}
"""By name, what a malicious image does to its own root file system before a container is made from it."""

if __name__ == "__main__":
    # Before the tests, whose time limit is shorter than what a slow mirror may take.
    print(debian_rootfs())
