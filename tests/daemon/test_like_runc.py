"""Programs in containers of shimd find what they find under runc: each difference has its reason in sidebyside.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import probes
from tests.daemon.sidebyside import difference, run_with_runc, run_with_shimd
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.rootfs import busybox_rootfs, debian_rootfs
from tests.support.specs import containerd_default, docker_default_seccomp, runc_default

Spec = dict[str, Any]
CGROUP_MOUNT = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["ro", "nosuid", "noexec", "nodev"],
}


def docker_default(*args: str) -> Spec:
    spec = containerd_default(*args)
    spec["process"]["noNewPrivileges"] = False
    spec["mounts"].append(CGROUP_MOUNT)
    spec["linux"]["seccomp"] = docker_default_seccomp()
    spec["hostname"] = "4c01db0b339c"
    return spec


def fresh_busybox(place: Path, number: int) -> Path:
    return busybox_rootfs(place / f"rootfs{number}")


def shared_debian(place: Path, number: int) -> Path:
    return debian_rootfs()


@requires("program:runc")
@pytest.mark.parametrize("make_spec", [runc_default, containerd_default, docker_default])
@pytest.mark.parametrize("make_rootfs", [fresh_busybox, shared_debian])
def test_default_configs(
    client: Client,
    bundle: MakeBundle,
    place: Path,
    container_id: str,
    make_spec: Callable[..., Spec],
    make_rootfs: Callable[[Path, int], Path],
) -> None:
    spec = make_spec("/bin/sh", "-c", probes.script())
    spec["linux"]["cgroupsPath"] = f"/{container_id}"
    spec["root"]["readonly"] = spec["root"].get("readonly", False) or make_rootfs is shared_debian
    ours = run_with_shimd(client, bundle(spec, make_rootfs(place, 1)), container_id)
    theirs = run_with_runc(bundle(spec, make_rootfs(place, 2)), container_id)
    assert (ours.code, theirs.code) == (0, 0), (ours, theirs)
    found, expected = probes.answers(ours.output), probes.answers(theirs.output)
    assert list(found) == list(expected) == list(probes.PROBES)
    report = "\n".join(f"{name}:\n{text}" for name in found if (text := difference(found[name], expected[name])))
    assert not report, report
