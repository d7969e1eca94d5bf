"""Pods and their containers through CRI, as the kubelet runs them."""

from __future__ import annotations

import os

import grpc
import pytest

from tests.containerd.pods import POD, Cri, CriError, Pod, PodContainerd, await_true


def test_container_and_its_log(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        assert pod.state() == "READY"
        container = pod.container("sh", "-c", "echo out; echo err >&2; exit 7")
        assert container.ended() == 7
        status = container.status()
        assert status.reason == "Error"
        assert 0 < status.created_at <= min(status.started_at, status.finished_at)
        assert sorted(container.log()) == [("stderr", "err"), ("stdout", "out")]
        container.remove()
        with pytest.raises(CriError) as caught:
            container.status()
        assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_container_that_is_never_started(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000", start=False)
        assert container.state() == "CREATED"
        container.remove()


def test_program_that_is_missing(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("/no/such/program", start=False)
        with pytest.raises(CriError, match="/no/such/program"):
            container.start()
        assert container.state() == "EXITED"
        assert container.status().reason == "StartError"


def test_exec_sync(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000")
        command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        done = cri.call("ExecSync", container_id=container.id, cmd=command, timeout=30)
        assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
        with pytest.raises(CriError) as caught:
            cri.call("ExecSync", container_id=container.id, cmd=["sleep", "1000"], timeout=1)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await_true(lambda: "sleep 1000" not in container.run("ps", "-o", "pid,args").split("\n", 2)[2])


def test_stop(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        polite = pod.container(
            "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done", name="polite"
        )
        deaf = pod.container("sleep", "1000", name="deaf")  # PID 1 has no handler for SIGTERM
        await_true(lambda: polite.log() != [])
        polite.stop(30)
        assert polite.ended() == 5
        deaf.stop(1)
        assert deaf.ended() == 137
        polite.remove()
        deaf.remove()


def test_containers_share_what_is_the_pods(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(
        pod_containerd, cri, name, network=POD, dns_config={"servers": ["10.1.2.3"], "searches": ["x.test"]}
    ) as pod:
        first, second = (pod.container("sleep", "1000", name=each) for each in ("first", "second"))
        for kind in ("net", "ipc", "uts"):
            assert _namespace(first.pid(), kind) == _namespace(second.pid(), kind) != _namespace(os.getpid(), kind)
        assert _namespace(first.pid(), "pid") != _namespace(second.pid(), "pid")
        assert first.run("hostname") == f"{pod.config['hostname']}\n" == second.run("cat", "/etc/hostname")
        first.run("sh", "-c", "echo shared >/dev/shm/file")
        assert second.run("cat", "/dev/shm/file") == "shared\n"
        assert second.run("cat", "/etc/resolv.conf") == "search x.test\nnameserver 10.1.2.3\n"
        assert "localhost" in second.run("cat", "/etc/hosts")


def test_one_shim_for_each_pod(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    """From 2.0 on containerd runs none for a container when the pod's knows sandboxes."""
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000")
        bundle = pod_containerd.folder / "state/io.containerd.runtime.v2.task/k8s.io" / container.id
        assert (bundle / "sandbox").exists() == (pod_containerd.peer.version == "2")
        assert (bundle / "shim-binary-path").exists() == (pod_containerd.peer.version != "2")


def test_shared_process_namespace(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name, namespaces={"pid": "POD"}) as pod:
        first = pod.container("sleep", "1111", name="first")
        second = pod.container("sh", "-c", "(exec sleep 0.1) & exec sleep 2222", name="second")
        assert _namespace(first.pid(), "pid") == _namespace(second.pid(), "pid")
        assert "sleep 1111" in second.run("ps", "-o", "args")
        assert "sleep 2222" in first.run("ps", "-o", "args")
        first.stop(0)
        assert first.ended() == 137
        assert second.state() == "RUNNING"


def test_sysctls_of_the_pod(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    sysctls = {"kernel.shmmni": "4000", "net.ipv4.ip_local_port_range": "2000 3000"}
    with Pod(pod_containerd, cri, name, network=POD, sysctls=sysctls) as pod:
        container = pod.container("sleep", "1000")
        assert container.run("cat", "/proc/sys/kernel/shmmni") == "4000\n"
        assert container.run("cat", "/proc/sys/net/ipv4/ip_local_port_range").split() == ["2000", "3000"]


def test_volume(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    volume = pod_containerd.folder / f"volume-{name}"
    volume.mkdir()
    (volume / "config").write_text("from outside\n")
    mounts = [
        {"container_path": "/rw", "host_path": str(volume)},
        {"container_path": "/ro", "host_path": str(volume), "readonly": True},
    ]
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000", mounts=mounts)
        container.run("sh", "-c", "cat /ro/config >/rw/copy; ! touch /ro/new 2>/dev/null")
    assert (volume / "copy").read_text() == "from outside\n"


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")
