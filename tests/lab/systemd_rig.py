"""Containers as units of systemd, for tests: what to make, and what systemd says of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.host.facts import probe
from shimd.runtime.container import Container
from shimd.runtime.direct import DirectLauncher
from tests.kernel.runtime_rig import Rig
from tests.lab.kernel_objects import bpf_programs, cgroups
from tests.support.specs import runc_default

CGROUPS = Path("/sys/fs/cgroup")
MEBIBYTE = 1 << 20
ABSENT = {"LoadState": "not-found"}
INACTIVE = {"ActiveState": "inactive"}


@pytest.fixture
def rig(place: Path, busybox: Path, container_id: str) -> Rig:
    return Rig(probe(), DirectLauncher(), place, container_id)


def shell(script: str, *, path: str = "", **resources: Any) -> dict[str, Any]:
    spec = runc_default("/bin/sh", "-c", script, rootfs="../rootfs")
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    spec["linux"]["cgroupsPath"] = path
    spec["linux"]["resources"].update(resources)
    return spec


def sleeper(**fields: Any) -> dict[str, Any]:
    return shell("exec sleep 1000", **fields)


@pytest.fixture
def started(rig: Rig) -> Iterator[Callable[..., Container]]:
    """``started(spec)``: a container of a unit, which runs; removed after the test."""
    made: list[Container] = []

    def start(spec: dict[str, Any], **options: Any) -> Container:
        container = rig.create(spec, systemd_cgroup=True, **options)
        made.append(container)
        rig.runtime.start(container)
        return container

    yield start
    for container in made:
        rig.end(container)
        assert show(unit_of(container), "ActiveState") == INACTIVE
        assert not cgroup_of(container).exists()


@contextlib.contextmanager
def user_session(uid: int, runtime_dir: Path) -> Iterator[Path]:
    """A user's systemd with its bus in ``runtime_dir``, as a login makes it; gives its part of the cgroups."""
    service = f"lab-user-{uid}.service"
    options = [f"User={uid}", "Delegate=yes", "Type=notify", "Slice=user.slice"]
    environment = [f"XDG_RUNTIME_DIR={runtime_dir}", f"HOME={runtime_dir}"]
    command = ["systemd-run", "--quiet", f"--unit={service}"]
    command += [f"--property={item}" for item in options] + [f"--setenv={item}" for item in environment]
    subprocess.run([*command, "/lib/systemd/systemd", "--user", "--unit=basic.target"], check=True)
    try:
        yield CGROUPS / "user.slice" / service
    finally:
        subprocess.run(["systemctl", "stop", service], check=True)


def show(unit: str, *properties: str) -> dict[str, str]:
    """What systemd says of a unit; it does not invent one that is not there."""
    command = ["systemctl", "show", unit, *[f"--property={name}" for name in properties]]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, str] = {}
    for name, _, value in (line.partition("=") for line in lines):
        found[name] = f"{found[name]}; {value}" if name in found else value
    return found


def unit_of(container: Container) -> str:
    return str(container.state.cgroup["unit"][0])


def cgroup_of(container: Container) -> Path:
    return Path(container.state.cgroup_paths[""])


def everything() -> tuple[set[str], str, int]:
    """All cgroups, all units, and the number of BPF programs."""
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend"]
    units = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return cgroups(), units, len(bpf_programs())
