"""Networks, limits and figures of pods; what is left of one that goes."""

from __future__ import annotations

import ipaddress
import os
import signal

import pytest

from tests.containerd.pods import NODE, POD, Cri, Pod, PodContainerd, await_true
from tests.support import wait

MIB = 1 << 20


def test_network(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with (
        Pod(pod_containerd, cri, f"{name}-1", network=POD) as server,
        Pod(pod_containerd, cri, f"{name}-2", network=POD) as client,
    ):
        address = server.status().network.ip
        assert ipaddress.ip_address(address) in ipaddress.ip_network("10.88.0.0/24")
        assert client.status().network.ip not in ("", address)
        listening = server.container("sh", "-c", "while :; do echo hello | nc -l -p 8080; done")
        assert f"inet {address}/" in listening.run("ip", "-4", "addr", "show", "eth0")
        assert "UP" in listening.run("ip", "link", "show", "lo")
        asking = client.container("sleep", "1000")
        assert asking.run("sh", "-c", f"until nc {address} 8080 </dev/null; do sleep 0.05; done") == "hello\n"


def test_network_of_the_node(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    if pod_containerd.sandboxer == "shim":
        pytest.skip("containerd before 2.3 crashes")
    with Pod(pod_containerd, cri, name, network=NODE) as pod:
        container = pod.container("sleep", "1000")
        for kind in ("net", "uts"):
            assert os.readlink(f"/proc/{container.pid()}/ns/{kind}") == os.readlink(f"/proc/thread-self/ns/{kind}")
        assert container.run("hostname") == f"{os.uname().nodename}\n"
        assert pod.status().network.ip == ""


def test_figures(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name, network=POD) as pod:
        keeps = "head -c 20000000 /dev/zero >/dev/shm/file; echo ready; sleep 1000"
        container = pod.container("sh", "-c", keeps)
        await_true(lambda: container.log() != [])
        first = cri.call("ContainerStats", container_id=container.id).stats
        assert 20_000_000 <= first.memory.usage_bytes.value < 60 * MIB
        assert 20_000_000 <= first.memory.working_set_bytes.value <= first.memory.usage_bytes.value
        container.run("sh", "-c", "i=0; while test $i -lt 30000; do i=$((i+1)); done")
        (second,) = cri.call("ListContainerStats", filter={"pod_sandbox_id": pod.id}).stats
        used = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
        assert 0 < used < second.cpu.timestamp - first.cpu.timestamp
        whole = cri.call("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux
        assert [each.attributes.id for each in whole.containers] == [container.id]
        assert whole.memory.usage_bytes.value >= 20_000_000
        assert whole.process.process_count.value >= 1
        assert whole.network.default_interface.name == "eth0"


def test_limits(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    limits = {"memory_limit_in_bytes": 64 * MIB, "cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512}
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000", linux={"resources": limits, **_own_processes(pod)})
        memory = ("memory/memory.limit_in_bytes", "memory.max")
        assert container.cgroup_file(*memory) == str(64 * MIB)
        assert container.cgroup_file("cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
        changed = {"memory_limit_in_bytes": 32 * MIB, "cpu_quota": 20_000, "cpu_period": 100_000}
        cri.call("UpdateContainerResources", container_id=container.id, linux=changed)
        assert container.cgroup_file(*memory) == str(32 * MIB)
        assert container.cgroup_file("cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"


def test_out_of_memory(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    limits = {"memory_limit_in_bytes": 16 * MIB}
    with Pod(pod_containerd, cri, name) as pod:
        linux = {"resources": limits, **_own_processes(pod)}
        container = pod.container("sh", "-c", "exec tail /dev/zero", linux=linux)
        assert container.ended() == 137
        await_true(lambda: container.status().reason == "OOMKilled")


def test_pod_whose_first_process_dies(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name, network=POD) as pod:
        container = pod.container("sleep", "1000")
        os.kill(pod.info()["pid"], signal.SIGKILL)
        await_true(lambda: pod.state() == "NOTREADY")
        assert container.state() == "RUNNING"  # its process namespace is its own
        pid = container.pid()
        pod.remove()
        wait.process_gone(pid)
        pod.__enter__()
        assert pod.container("echo", "again").ended() == 0


def _own_processes(pod: Pod) -> dict[str, object]:
    return {"security_context": {"namespace_options": pod.namespaces}}
