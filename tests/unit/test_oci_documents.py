"""The documents that shimd writes: the default spec, features, state."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shimd.host import facts
from shimd.oci.features import features
from shimd.oci.read import read_resources, read_spec
from shimd.oci.spec import OCI_VERSION, default_spec
from shimd.oci.statejson import dumps, hook_state, state_document
from shimd.oci.validate import validate
from shimd.oci.values import cpu_list, huge_page_kib, rooted, sysctl_path
from shimd.oci.write import resources_document
from tests.support.specs import docker_default_seccomp, every_field


@pytest.mark.parametrize("rootless", [False, True])
@pytest.mark.parametrize("cgroup2", [False, True])
def test_default_spec_can_be_read(*, rootless: bool, cgroup2: bool) -> None:
    spec = read_spec(json.dumps(default_spec(rootless=rootless, cgroup2=cgroup2, uid=1000, gid=100)).encode())
    assert validate(spec, facts.probe()) == ()
    assert (spec.linux.namespace("cgroup") is not None) == cgroup2
    assert (spec.linux.namespace("user") is not None) == rootless
    assert [mapping.host_id for mapping in spec.linux.uid_mappings + spec.linux.gid_mappings] == [1000, 100][
        : 2 * rootless
    ]


@pytest.mark.parametrize("rootless", [False, True])
def test_default_spec_is_that_of_runc(tmp_path: Path, *, rootless: bool) -> None:
    """Apart from the version and the ambient set, which runc dropped in 1.2."""
    command = ["runc", "spec", *(["--rootless"] if rootless else [])]
    try:
        subprocess.run(command, cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("runc is not installed")
    expected = json.loads((tmp_path / "config.json").read_bytes())
    expected["ociVersion"] = OCI_VERSION
    expected["process"]["capabilities"].pop("ambient", None)
    cgroup2 = {"type": "cgroup"} in expected["linux"]["namespaces"]
    assert default_spec(rootless=rootless, cgroup2=cgroup2) == expected


def test_default_specs_share_nothing() -> None:
    default_spec()["mounts"][0]["options"] = ["ro"]
    default_spec()["linux"]["maskedPaths"].clear()
    assert "options" not in default_spec()["mounts"][0]
    assert default_spec()["linux"]["maskedPaths"]


def test_features() -> None:
    document = features(facts.probe(), version="1.2", libseccomp="2.5.4", mount_options=["rw", "ro"])
    assert document["ociVersionMax"] == OCI_VERSION
    assert document["mountOptions"] == ["ro", "rw"]
    assert document["annotations"]["io.github.seccomp.libseccomp.version"] == "2.5.4"
    linux = document["linux"]
    assert "SCMP_ACT_NOTIFY" in linux["seccomp"]["actions"]
    assert linux["mountExtensions"] == {"idmap": {"enabled": True}}
    assert "MPOL_BIND" in linux["memoryPolicy"]["modes"]
    assert "SCMP_ACT_ERRNO" in linux["seccomp"]["actions"]
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])
    assert len(linux["capabilities"]) == 41
    json.dumps(document)


def test_features_without_libseccomp() -> None:
    document = features(facts.probe(), version="1.2")
    assert document["linux"]["seccomp"] == {"enabled": False}


def test_hook_state() -> None:
    state = hook_state(container_id="c", status="creating", pid=5, bundle="/b", annotations={"k": "v"})
    assert dumps(state) == (
        f'{{"ociVersion":"{OCI_VERSION}","id":"c","status":"creating","pid":5,"bundle":"/b","annotations":{{"k":"v"}}}}'
    )
    assert set(hook_state(container_id="c", status="stopped", pid=0, bundle="/b", annotations={})) == {
        "ociVersion",
        "id",
        "status",
        "bundle",
    }


def test_state_document() -> None:
    members: dict[str, Any] = {
        "container_id": "c",
        "status": "stopped",
        "pid": 0,
        "bundle": "/b",
        "rootfs": "/b/rootfs",
        "created": "2024-05-06T07:08:09.1Z",
    }
    document = state_document(**members, annotations={})
    assert list(document) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"]
    assert document["pid"] == 0
    annotated = state_document(**members, annotations=read_spec(_annotated()).annotations, owner="root")
    assert json.loads(dumps(annotated))["annotations"] == {"a": "b"}


def _annotated() -> bytes:
    return json.dumps(default_spec() | {"annotations": {"a": "b"}}).encode()


@pytest.mark.parametrize("document", [every_field()["linux"]["resources"], {}, {"memory": {"limit": 0}, "pids": {}}])
def test_resources_can_be_written_back(document: dict[str, Any]) -> None:
    resources = read_resources(json.dumps(document).encode())
    assert read_resources(json.dumps(resources_document(resources)).encode()) == resources


# ---- values ----------------------------------------------------------------------------------------------------------


def test_cpu_lists() -> None:
    assert cpu_list("0-3,7") == (0, 1, 2, 3, 7)
    assert cpu_list(" 7 , 1,,1-2,") == (1, 2, 7)
    for bad in ("", ",", "-1", "1-", "a", "1 2", "2-1", "65537", "٣", "1-2-3", "9" * 5000):
        with pytest.raises(ValueError, match=r"."):
            cpu_list(bad)


def test_sysctl_paths() -> None:
    assert sysctl_path("net.ipv4.ip_forward") == "net/ipv4/ip_forward"
    assert sysctl_path("net/ipv4/conf/eno2.100/rp_filter") == "net/ipv4/conf/eno2.100/rp_filter"
    assert sysctl_path("net.ipv4.conf.eno2/100.rp_filter") == "net/ipv4/conf/eno2.100/rp_filter"


def test_rooted_paths() -> None:
    assert [rooted(path) for path in ("", "a/", "//a", "/../a/./b", "/a/..")] == ["/", "/a", "/a", "/a/b", "/"]


def test_huge_page_names() -> None:
    assert [huge_page_kib(name) for name in ("64KB", "2MB", "1GB", "1024KB")] == [64, 2048, 1 << 20, None]


# ---- Docker's profile ------------------------------------------------------------------------------------------------


def test_docker_profile_follows_capabilities_and_machine() -> None:
    def rules(profile: dict[str, Any], name: str) -> list[str]:
        return [rule["action"] for rule in profile["syscalls"] if name in rule["names"] and "args" not in rule]

    plain = docker_default_seccomp(machine="x86_64")
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert rules(plain, "bpf") == ["SCMP_ACT_ERRNO"]
    assert rules(plain, "arch_prctl") == ["SCMP_ACT_ALLOW"]
    assert rules(docker_default_seccomp(["CAP_SYS_ADMIN"], machine="x86_64"), "bpf") == ["SCMP_ACT_ALLOW"]
    assert rules(docker_default_seccomp(machine="aarch64"), "arch_prctl") == []
