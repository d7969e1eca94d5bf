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


def crowded(*args: str) -> Spec:
    """Much at once that runc 1.1 knows, too: what works alone may disturb something else."""
    spec = docker_default(*args)
    capabilities = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_MKNOD"]
    spec["process"] |= {
        "user": {"uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [5, 10]},
        "cwd": "/var/tmp",
        "env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin", "A=b"],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), capabilities),
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1 << 23, "hard": 1 << 24},
        ],
        "oomScoreAdj": 200,
    }
    spec["mounts"] += [
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid", "size=4m"]},
        {"destination": "/mnt", "type": "bind", "source": "/usr", "options": ["rbind", "rro", "nosuid", "rslave"]},
        {"destination": "/etc/mtab", "type": "bind", "source": "/etc/hostname", "options": ["bind", "ro"]},
    ]
    linux = spec["linux"]
    linux["namespaces"].append({"type": "cgroup"})
    linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "16384", "net.core.somaxconn": "512"}
    linux["devices"] = [
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o660, "uid": 1000, "gid": 5},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    linux["maskedPaths"] += ["/etc/group", "/root"]
    linux["readonlyPaths"] += ["/etc/hosts", "/tmp"]
    linux["resources"] |= {
        "memory": {"limit": 128 << 20, "swap": 256 << 20},
        "cpu": {"shares": 2048, "quota": 150000, "period": 100000},
        "pids": {"limit": 100},
    }
    return spec


def fresh_busybox(place: Path, number: int) -> Path:
    return busybox_rootfs(place / f"rootfs{number}")


def shared_debian(place: Path, number: int) -> Path:
    return debian_rootfs()


@requires("program:runc")
@pytest.mark.parametrize("make_spec", [runc_default, containerd_default, docker_default, crowded])
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
