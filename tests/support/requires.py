"""What a test needs from the machine, probed by doing, once: ``@requires("userns", "cgroup:memory", "program:runc")``.

A need that is not met skips the test with the reason; the end of a run lists all reasons. Known needs: ``root``,
``userns``, ``overlay``, ``loop``, ``veth``, ``apparmor``, ``selinux``, ``kernel:VERSION``, ``program:NAME``,
``runs:COMMAND``, ``file:PATH``, ``namespace:NAME``, ``capability:NUMBER``, ``cgroup:CONTROLLER``,
``cgroup-mode:v1|hybrid|v2``.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import pytest

from tests.support.leaks import cgroup_mount_points


def requires(*needs: str) -> pytest.MarkDecorator:
    """Skip the test unless every need is met."""
    return pytest.mark.requires(*needs)


@functools.cache
def lack(need: str) -> str:
    """Why ``need`` is not met on this machine, or ""."""
    name, _, argument = need.partition(":")
    return PROBES[name](argument)


def _root(_: str) -> str:
    if os.geteuid() != 0:
        return "needs root"
    return "" if _succeeds("unshare", "--mount", "true") else "needs CAP_SYS_ADMIN: mount namespaces are refused here"


def _userns(_: str) -> str:
    return "" if _succeeds("unshare", "--user", "--map-root-user", "true") else "user namespaces are refused here"


def _overlay(_: str) -> str:
    with tempfile.TemporaryDirectory() as base:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{base}/{name}")
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        done = _succeeds("unshare", "--mount", "mount", "-t", "overlay", "-o", options, "overlay", f"{base}/merged")
    return "" if done else "overlayfs cannot be mounted here"


def _loop(_: str) -> str:
    return "" if _succeeds("losetup", "--find") else "no loop devices here"


def _veth(_: str) -> str:
    done = _succeeds("unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
    return "" if done else "no pairs of network interfaces here"


def _apparmor(_: str) -> str:
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            return "" if file.read().startswith("Y") else "AppArmor is not enabled"
    except OSError:
        return "the kernel has no AppArmor"


def _selinux(_: str) -> str:
    return "" if os.path.exists("/sys/fs/selinux/enforce") else "SELinux is not enabled"


def _kernel(version: str) -> str:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split("-")[0].split(".")[:2]]

    release = os.uname().release
    return "" if numbers(release) >= numbers(version) else f"needs Linux {version}, this is {release}"


def _program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"


def _runs(command: str) -> str:
    return "" if _succeeds(*command.split()) else f"{command} fails here"


def _file(path: str) -> str:
    return "" if os.path.exists(path) else f"{path} does not exist"


def _namespace(name: str) -> str:
    return "" if os.path.exists(f"/proc/self/ns/{name}") else f"the kernel has no {name} namespaces"


def _capability(number: str) -> str:
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return "" if effective >> int(number) & 1 else f"capability {number} is missing"


def _cgroup(controller: str) -> str:
    for point in cgroup_mount_points():
        if os.path.basename(point) == controller or controller in os.path.basename(point).split(","):
            return ""
        try:
            with open(f"{point}/cgroup.controllers") as file:
                if controller in file.read().split():
                    return ""
        except OSError:
            continue
    return f"no cgroup controller {controller}"


def _cgroup_mode(mode: str) -> str:
    points = cgroup_mount_points()
    unified = [point for point in points if os.path.exists(f"{point}/cgroup.controllers")]
    found = "v1" if not unified else "v2" if unified == points else "hybrid"
    return "" if found == mode else f"cgroups are {found} here, not {mode}"


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


PROBES: dict[str, Callable[[str], str]] = {
    "root": _root,
    "userns": _userns,
    "overlay": _overlay,
    "loop": _loop,
    "veth": _veth,
    "apparmor": _apparmor,
    "selinux": _selinux,
    "kernel": _kernel,
    "program": _program,
    "runs": _runs,
    "file": _file,
    "namespace": _namespace,
    "capability": _capability,
    "cgroup": _cgroup,
    "cgroup-mode": _cgroup_mode,
}
