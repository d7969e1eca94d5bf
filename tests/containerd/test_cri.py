"""Pods and their containers through CRI, as the kubelet runs them. One module, since starting containerd takes longer
than most tests.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.containerd.pods import NODE, POD, Cri, CriError, Pod, PodContainerd, await_true
from tests.containerd.rig import IS_RUNC
from tests.support import wait
from tests.support.websocket import END, RESIZE, STDERR, STDIN, STDOUT, Channels, exit_code

MIB = 1 << 20


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


def test_many_at_once(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    if pod_containerd.peer.version != "2":
        pytest.skip("takes long, and differs in nothing")

    def live(number: int) -> list[int]:
        with Pod(pod_containerd, cri, f"{name}-{number}", network=POD) as pod:
            lasting = pod.container("sleep", "1000", name="lasting")
            script = f"echo hello; exit {number}"
            others = [pod.container("sh", "-c", script, name=f"c{index}") for index in range(2)]
            codes = [container.ended() for container in others]
            assert all(container.log() == [("stdout", "hello")] for container in others)
            assert lasting.run("hostname") == f"{pod.config['hostname']}\n"
            return codes

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(live, range(6))) == [[number] * 2 for number in range(6)]


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


# ---- exec, attach and forwarded ports, over containerd's streaming server ------------------------------------------


def test_exec(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000")
        command = ["sh", "-c", "read line; echo got $line; echo err >&2; exit 4"]
        answer = cri.call("Exec", container_id=container.id, cmd=command, stdin=True, stdout=True, stderr=True)
        with Channels(answer.url) as channels:
            channels.send(STDIN, b"hello\n")
            streams = channels.rest()
        assert (streams[STDOUT], streams[STDERR], exit_code(streams[END])) == (b"got hello\n", b"err\n", 4)


def test_exec_with_a_terminal(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sleep", "1000")
        answer = cri.call("Exec", container_id=container.id, cmd=["sh"], tty=True, stdin=True, stdout=True)
        with Channels(answer.url) as channels:
            channels.send(RESIZE, json.dumps({"Width": 97, "Height": 31}).encode())
            channels.send(STDIN, b"until stty size | grep '31 97'; do sleep 0.05; done; tty\n")
            channels.until(STDOUT, b"\n31 97")
            channels.until(STDOUT, b"/dev/")
            channels.send(STDIN, b"exit 6\n")
            assert exit_code(channels.rest()[END]) == 6


def test_attach(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sh", "-c", "read line; echo got $line; exit 5", stdin=True, stdin_once=True)
        answer = cri.call("Attach", container_id=container.id, stdin=True, stdout=True, stderr=True)
        with Channels(answer.url) as channels:
            channels.send(STDIN, b"hello\n")
            channels.until(STDOUT, b"got hello\n")
        assert container.ended() == 5
        assert container.log() == [("stdout", "got hello")]


def test_attach_to_a_terminal(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name) as pod:
        container = pod.container("sh", stdin=True, tty=True)
        answer = cri.call("Attach", container_id=container.id, stdin=True, tty=True, stdout=True)
        with Channels(answer.url) as channels:
            channels.send(STDIN, b"tty; exit 8\n")
            channels.until(STDOUT, b"/dev/")
        assert container.ended() == 8


def test_forwarded_port(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    with Pod(pod_containerd, cri, name, network=POD) as pod:
        serve = "echo ready; while :; do echo hello | nc -l -p 8080; done"
        container = pod.container("sh", "-c", serve)
        container.run("sh", "-c", "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done")  # 8080
        answer = cri.call("PortForward", pod_sandbox_id=pod.id, port=[8080])
        with Channels(answer.url, "port=8080") as channels:
            channels.until(0, b"hello\n")


# ---- networks, limits and figures; what is left of a pod that goes -------------------------------------------------


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
    if IS_RUNC and pod_containerd.peer.version == "2":
        pytest.skip("the shim of runc in containerd 2 is left running")
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


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def _own_processes(pod: Pod) -> dict[str, object]:
    return {"security_context": {"namespace_options": pod.namespaces}}


def test_user_namespace(pod_containerd: PodContainerd, cri: Cri, name: str) -> None:
    if pod_containerd.peer.version != "2" or IS_RUNC:
        pytest.skip("needs containerd 2 and a runtime that maps mounts")
    maps = [{"host_id": 200_000, "container_id": 0, "length": 65_536}]
    mapped = {"userns_options": {"mode": POD, "uids": maps, "gids": maps}}
    with Pod(pod_containerd, cri, name, network=POD, namespaces=mapped) as pod:
        container = pod.container("sleep", "1000")
        assert container.run("cat", "/proc/self/uid_map").split() == ["0", "200000", "65536"]
        assert container.run("stat", "-c", "%u", "/bin/busybox", "/etc/hosts") == "0\n0\n"
        container.run("sh", "-c", "echo x >/new && echo y >/dev/shm/new && hostname")
