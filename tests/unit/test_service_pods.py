"""A pod's configuration as that of the container that holds its namespaces, and of those that join it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import pod_pb2
from shimd.errors import InvalidArgument, Unimplemented
from shimd.oci.read import read_spec
from shimd.runtime import holder, pod
from shimd.service import pods


def config(**fields: Any) -> pod_pb2.PodSandboxConfig:
    return pod_pb2.PodSandboxConfig(**fields)


def linux_with(**options: Any) -> pod_pb2.LinuxPodSandboxConfig:
    made = pod_pb2.LinuxPodSandboxConfig()
    made.security_context.namespace_options.MergeFrom(pod_pb2.NamespaceOption(**options))
    return made


def test_default_pod() -> None:
    wanted = config(hostname="web", linux=pod_pb2.LinuxPodSandboxConfig(cgroup_parent="/pods/1"))
    base = pods.base_of(wanted, "id1", "/run/netns/1")
    spec = read_spec(pod.config(base, "/state/id1"))
    found = {namespace.type: namespace.path for namespace in spec.linux.namespaces}
    assert found == {"uts": None, "network": "/run/netns/1", "pid": None, "ipc": None, "mount": None}
    assert (spec.hostname, spec.linux.cgroups_path) == ("web", "/pods/1/id1")
    assert spec.linux.sysctl["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert spec.annotations["io.kubernetes.cri.sandbox-id"] == "id1"


def test_pod_in_the_namespaces_of_the_node() -> None:
    node = pod_pb2.NODE
    base = pods.base_of(config(hostname="web", linux=linux_with(network=node, pid=node, ipc=node)), "id1", "")
    spec = read_spec(pod.config(base, "/state/id1"))
    assert [namespace.type for namespace in spec.linux.namespaces] == ["mount"]
    assert not spec.hostname
    assert not spec.linux.sysctl


def test_sysctls_of_the_pod_win() -> None:
    wanted = config()
    wanted.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "1024"
    assert pods.base_of(wanted, "id1", "")["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "1024"


@pytest.mark.parametrize(
    ("dns", "text"),
    [
        (None, None),
        (pod_pb2.DNSConfig(), ""),
        (
            pod_pb2.DNSConfig(servers=["10.0.0.1", "10.0.0.2"], searches=["a.b", "b"], options=["ndots:5", "edns0"]),
            "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_resolver(dns: pod_pb2.DNSConfig | None, text: str | None) -> None:
    assert pods.files_of(config(dns_config=dns)).resolv_conf == text


def test_parent_that_is_systemds() -> None:
    wanted = config(linux=pod_pb2.LinuxPodSandboxConfig(cgroup_parent="/kubepods.slice/kubepods-pod1.slice"))
    assert pods.base_of(wanted, "id1", "")["linux"]["cgroupsPath"] == "kubepods-pod1.slice:cri-containerd:id1"


def test_user_namespace() -> None:
    maps = [pod_pb2.IDMapping(host_id=100000, container_id=0, length=65536)]
    options = pod_pb2.UserNamespace(mode=pod_pb2.POD, uids=maps, gids=maps)
    base = pods.base_of(config(linux=linux_with(userns_options=options)), "id1", "/netns")
    new = read_spec(pod.config(base, "/state/id1"))
    assert new.linux.namespace("user") == ("user", None)
    assert new.linux.uid_mappings == new.linux.gid_mappings == ((0, 100000, 65536),)
    assert "net.ipv4.ping_group_range" not in new.linux.sysctl
    joined = read_spec(pod.config(pods.with_user_namespace(base, "/user"), "/state/id1"))
    assert joined.linux.namespace("user") == ("user", "/user")
    node = pod_pb2.UserNamespace(mode=pod_pb2.NODE)
    assert not pods.has_user_namespace(config(linux=linux_with(userns_options=node)))


def test_config_without_kubernetes() -> None:
    base = pods.base_of_spec({"hostname": "plain", "process": {"args": ["x"]}}, "/netns")
    spec = read_spec(pod.config(base, "/state/id1"))
    assert {namespace.type for namespace in spec.linux.namespaces} == {"mount", "pid", "ipc", "uts", "network"}
    assert (spec.hostname, spec.process.args) == ("plain", ("/shimd-pod",))


@pytest.mark.parametrize("linux", ["x", {"namespaces": {}}, {"namespaces": ["x"]}, {"uidMappings": 1}])
def test_wrong_config_without_kubernetes(linux: Any) -> None:
    with pytest.raises(InvalidArgument, match="/linux"):
        pods.base_of_spec({"linux": linux}, "")


def test_what_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match="pods/1"):
        pods.base_of(config(linux=pod_pb2.LinuxPodSandboxConfig(cgroup_parent="pods/1")), "id1", "")


def test_mounts_of_a_container_in_a_pod(tmp_path: Path) -> None:
    (tmp_path / "pod/shm").mkdir(parents=True)
    document = {
        "ociVersion": "1.0.2",
        "process": {"args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": True},
        "linux": {"namespaces": [{"type": "mount"}]},
        "mounts": [
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/etc/hosts/", "type": "bind", "source": "/hosts", "options": ["bind"]},
        ],
    }
    data = json.dumps(document).encode()
    spec = read_spec(pod.amended(data, read_spec(data), str(tmp_path)))
    folder = f"{tmp_path}/pod"
    assert [(mount.destination, mount.source) for mount in spec.mounts] == [
        ("/dev/shm", f"{folder}/shm"),
        ("/etc/hosts/", "/hosts"),
        ("/etc/hostname", f"{folder}/hostname"),
        ("/etc/resolv.conf", f"{folder}/resolv.conf"),
    ]
    assert "ro" in spec.mounts[-1].options
    assert pod.amended(data, spec, f"{tmp_path}/elsewhere") is data


def test_program_for_each_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        image = holder.image(machine)
        assert image.startswith(b"\x7fELF")
        assert len(image) < 256
    with pytest.raises(Unimplemented, match="sparc"):
        holder.image("sparc")
