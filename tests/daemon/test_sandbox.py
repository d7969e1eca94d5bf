"""Sandboxes: what the containers of a pod have in common, without a pause container."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2, mount_pb2, pod_pb2
from shimd.api.containerd import sandbox_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import session, wait
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.leaks import cgroup_mount_points
from tests.support.requires import requires
from tests.support.specs import runc_default
from tests.support.ttrpc import TtrpcClient

LAUNCHER = Path(sys.executable).parent / "containerd-shim-shimd-v2"
KINDS = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
NODE = pod_pb2.NODE
MIB = 1 << 20
METRICS = {cls.DESCRIPTOR.full_name: cls for cls in (cgroups_v1_pb2.Metrics, cgroups_v2_pb2.Metrics)}


class Pod:
    """A sandbox that is removed in the end."""

    def __init__(self, client: Client | TtrpcClient, sandbox_id: str, bundle: Path) -> None:
        self.client = client
        self.id = sandbox_id
        self.bundle = bundle

    def create(self, config: pod_pb2.PodSandboxConfig | None = None, **fields: Any) -> None:
        request = api.CreateSandboxRequest(sandbox_id=self.id, bundle_path=str(self.bundle), **fields)
        if config is not None:
            request.options.type_url = "runtime.v1.PodSandboxConfig"
            request.options.value = config.SerializeToString()
        self.client.sandbox.CreateSandbox(request)

    def start(self) -> int:
        return int(self.client.sandbox.StartSandbox(api.StartSandboxRequest(sandbox_id=self.id)).pid)

    def run(self, config: pod_pb2.PodSandboxConfig | None = None, **fields: Any) -> int:
        self.create(config, **fields)
        return self.start()

    def status(self, *, verbose: bool = False) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id=self.id, verbose=verbose)
        answer: api.SandboxStatusResponse = self.client.sandbox.SandboxStatus(request)
        return answer

    def waiting(self) -> Any:
        return self.client.sandbox.WaitSandbox.future(api.WaitSandboxRequest(sandbox_id=self.id))

    def stop(self) -> None:
        self.client.sandbox.StopSandbox(api.StopSandboxRequest(sandbox_id=self.id))

    def shutdown(self) -> None:
        self.client.sandbox.ShutdownSandbox(api.ShutdownSandboxRequest(sandbox_id=self.id))

    def member(self, pid: int, *args: str, kinds: tuple[str, ...] = ("network", "ipc", "uts")) -> dict[str, Any]:
        """The config.json of a container, as the CRI plugin writes it."""
        spec = runc_default(*args)
        kept = [entry for entry in spec["linux"]["namespaces"] if entry["type"] not in kinds]
        joined = [{"type": kind, "path": f"/proc/{pid}/ns/{KINDS[kind]}"} for kind in kinds]
        spec["linux"]["namespaces"] = [*kept, *joined]
        spec["annotations"] = {"io.kubernetes.cri.sandbox-id": self.id, "io.kubernetes.cri.container-type": "container"}
        spec["hostname"] = ""
        return spec


MakePod = Callable[[], Pod]


@pytest.fixture
def pod(client: Client, new_id: Callable[[], str], bundle: Callable[..., Path], place: Path) -> Iterator[MakePod]:
    pods: list[Pod] = []

    def make() -> Pod:
        folder = place / f"sandbox{len(pods)}"
        folder.mkdir()
        pods.append(Pod(client, new_id(), folder))
        return pods[-1]

    yield make
    for made in pods:
        made.shutdown()


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{KINDS[kind]}")


def config(hostname: str = "", **options: Any) -> pod_pb2.PodSandboxConfig:
    made = pod_pb2.PodSandboxConfig(hostname=hostname)
    made.metadata.name = "web"
    made.linux.security_context.namespace_options.MergeFrom(pod_pb2.NamespaceOption(**options))
    return made


@pytest.mark.parametrize("transport", ["grpc", "ttrpc"])
def test_life(daemon: Daemon, client: Client, pod: MakePod, transport: str) -> None:
    p = pod()
    connect = daemon.client if transport == "grpc" else daemon.ttrpc_client
    with connect(namespace=client.namespace) as own:
        p.client = own
        p.create(config("web"))
        assert p.status().state == "SANDBOX_NOTREADY"
        pid = p.start()
        status = p.status(verbose=True)
        assert (status.sandbox_id, status.pid, status.state) == (p.id, pid, "SANDBOX_READY")
        assert json.loads(status.info["info"])["runtimeSpec"]["hostname"] == "web"
        own.sandbox.PingSandbox(api.PingRequest(sandbox_id=p.id))
        named = own.sandbox.Platform(api.PlatformRequest(sandbox_id=p.id)).platform
        assert (named.os, named.architecture) == ("linux", {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()])
        waiting = p.waiting()
        p.stop()
        ended = waiting.result()
        assert ended.exit_status == 128 + signal.SIGKILL
        status = p.status()
        assert (status.pid, status.state, status.exited_at) == (0, "SANDBOX_NOTREADY", ended.exited_at)
        p.stop()
        p.shutdown()
        for call in (p.status, p.stop, lambda: own.sandbox.PingSandbox(api.PingRequest(sandbox_id=p.id))):
            with refused("NOT_FOUND", p.id):
                call()
        p.shutdown()
        p.client = client


def test_namespaces(pod: MakePod, client: Client) -> None:
    first, second = pod(), pod()
    pid = first.run(config("web"))
    assert not [kind for kind in KINDS if namespace(pid, kind) == namespace(os.getpid(), kind)]
    other = second.run(config("web", network=NODE, ipc=NODE), netns_path="")
    mine = [kind for kind in KINDS if namespace(other, kind) != namespace(os.getpid(), kind)]
    assert mine == ["pid"]
    third = pod()
    joined = third.run(config(), netns_path=f"/proc/{pid}/ns/net")
    assert namespace(joined, "network") == namespace(pid, "network")


def test_process_that_holds_them_is_next_to_nothing(pod: MakePod) -> None:
    pid = pod().run(config())
    assert Path(f"/proc/{pid}/comm").read_text() == "shimd-pod\n"
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) <= 64
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert sorted(os.listdir(f"/proc/{pid}/root")) == ["dev", "proc", "shimd-pod"]
    assert os.listdir(f"/proc/{pid}/root/dev") == os.listdir(f"/proc/{pid}/root/proc") == []
    with pytest.raises(OSError, match="Read-only"):
        (Path(f"/proc/{pid}/root") / "new").touch()


def test_containers_get_what_is_the_pods(pod: MakePod, box: MakeBox) -> None:
    p = pod()
    wanted = config("web")
    wanted.dns_config.servers.append("10.1.2.3")
    wanted.linux.sysctls["kernel.shmmni"] = "4000"
    pid = p.run(wanted)
    script = "cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shmmni; hostname"
    first, second = (box(spec=p.member(pid, "sleep", "1000")) for _ in range(2))
    for b in (first, second):
        b.make()
        own = b.start()
        assert [namespace(own, kind) == namespace(pid, kind) for kind in KINDS] == [True, True, True, False]
    root = f"/proc/{first.state().pid}/root"
    assert Path(f"{root}/etc/hostname").read_text() == "web\n"
    assert Path(f"{root}/etc/resolv.conf").read_text() == "nameserver 10.1.2.3\n"
    assert Path(f"{root}/etc/hosts").read_text() == Path("/etc/hosts").read_text()
    first.exec("e", *shell(f"echo shared >/dev/shm/file && {{ {script}; }} >/dev/shm/seen"))
    first.start("e")
    assert first.wait("e") == 0
    assert Path(f"/proc/{second.state().pid}/root/dev/shm/file").read_text() == "shared\n"
    seen = Path(f"/proc/{second.state().pid}/root/dev/shm/seen").read_text().split("\n")
    assert seen == ["web", "nameserver 10.1.2.3", "4000", "web", ""]


def test_what_a_container_wants_elsewhere_stays(pod: MakePod, box: MakeBox, place: Path) -> None:
    p = pod()
    pid = p.run(config("web"))
    (place / "hosts").write_text("kubelet's\n")
    spec = p.member(pid, "sleep", "1000")
    spec["root"]["readonly"] = True
    bind = {"type": "bind", "source": str(place / "hosts"), "options": ["bind"]}
    spec["mounts"].append({"destination": "/etc/hosts", **bind})
    shm = next(mount for mount in spec["mounts"] if mount["destination"] == "/dev/shm")
    shm.update({"type": "bind", "source": str(place), "options": ["bind"]})
    b = box(spec=spec)
    b.make()
    root = Path(f"/proc/{b.start()}/root")
    assert (root / "etc/hosts").read_text() == (root / "dev/shm/hosts").read_text() == "kubelet's\n"
    assert (root / "etc/hostname").read_text() == "web\n"
    with pytest.raises(OSError, match="Read-only"):
        (root / "etc/hostname").write_text("x")


def test_shared_process_namespace_is_reaped(pod: MakePod, box: MakeBox) -> None:
    p = pod()
    pid = p.run(config("web"))
    b = box(spec=p.member(pid, *shell("(sleep 0.2 & echo $! >/dev/shm/orphan) ; sleep 1000"), kinds=("pid",)))
    b.make()
    b.start()
    b.exec(
        "e",
        *shell(
            "cd /dev/shm; until test -s orphan; do sleep 0.01; done;"
            " while test -d /proc/$(cat orphan); do sleep 0.01; done"
        ),
    )
    b.start("e")
    assert b.wait("e") == 0


def test_stop_ends_the_containers_of_the_pod(pod: MakePod, box: MakeBox) -> None:
    p, stranger = pod(), box("sleep", "1000")
    pid = p.run(config("web"))
    members = [box(spec=p.member(pid, "sleep", "1000", kinds=kinds)) for kinds in (("pid",), ("network",))]
    for b in (*members, stranger):
        b.make()
        b.start()
    p.stop()
    assert [b.wait() for b in members] == [137, 137]
    assert stranger.status() == "RUNNING"
    assert members[0].delete().exit_status == 137
    p.shutdown()
    for b in members:
        with refused("NOT_FOUND", b.id):
            b.state()
    assert stranger.status() == "RUNNING"


def test_end_of_the_process_is_the_end_of_the_sandbox(pod: MakePod) -> None:
    p = pod()
    pid = p.run(config("web"))
    waiting = p.waiting()
    os.kill(pid, signal.SIGTERM)  # which the first process of a namespace does not hear
    os.kill(pid, signal.SIGKILL)
    assert waiting.result().exit_status == 137
    assert p.status().state == "SANDBOX_NOTREADY"


def test_figures_are_those_of_the_pod(pod: MakePod, box: MakeBox, client: Client) -> None:
    p = pod()
    wanted = config("web")
    parent = f"{session.TAG}-pod"
    wanted.linux.cgroup_parent = f"/{parent}"
    spec = p.member(
        p.run(wanted), *shell("head -c 20000000 /dev/zero >/dev/shm/file; echo done >/dev/shm/done; sleep 1000")
    )
    spec["linux"]["cgroupsPath"] = f"/{parent}/member"
    b = box(spec=spec)
    b.make()
    pid = b.start()
    b.exec("e", *shell("until test -s /dev/shm/done; do sleep 0.01; done"))
    b.start("e")
    b.wait("e")
    metric = client.sandbox.SandboxMetrics(api.SandboxMetricsRequest(sandbox_id=p.id)).metrics
    figures: Any = METRICS[metric.data.type_url].FromString(metric.data.value)
    usage = figures.memory.usage if isinstance(figures, cgroups_v2_pb2.Metrics) else figures.memory.usage.usage
    assert (metric.id, 20_000_000 <= usage < 60 * MIB) == (p.id, True)
    b.kill()
    b.wait()
    wait.process_gone(pid)
    b.delete()
    p.shutdown()
    for point in cgroup_mount_points():
        if os.path.isdir(f"{point}/{parent}"):
            os.rmdir(f"{point}/{parent}")


def test_without_kubernetes(pod: MakePod) -> None:
    p = pod()
    namespaces = [{"type": "uts"}, {"type": "network"}]
    spec = {"ociVersion": "1.0.2", "hostname": "plain", "linux": {"namespaces": namespaces}}
    (p.bundle / "config.json").write_text(json.dumps(spec))
    pid = p.run(annotations={"test.shimd/a": "b"})
    assert '"test.shimd/a": "b"' in p.status(verbose=True).info["info"]
    differ = [kind for kind in KINDS if namespace(pid, kind) != namespace(os.getpid(), kind)]
    assert differ == ["network", "uts"]
    other = pod()
    assert namespace(other.run(netns_path=f"/proc/{pid}/ns/net"), "network") == namespace(pid, "network")


@requires("userns")
def test_user_namespace(pod: MakePod, box: MakeBox) -> None:
    """Of a network that was made in one; the containers' files of /etc are root's in it."""
    maps = [pod_pb2.IDMapping(host_id=100000, container_id=0, length=65536)]
    wanted = config("web", userns_options=pod_pb2.UserNamespace(mode=pod_pb2.POD, uids=maps, gids=maps))
    first, second = pod(), pod()
    pid = first.run(wanted)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    other = second.run(wanted, netns_path=f"/proc/{pid}/ns/net")
    assert os.readlink(f"/proc/{other}/ns/user") == os.readlink(f"/proc/{pid}/ns/user")
    spec = second.member(other, *shell("test $(stat -c %u /etc/hosts):$(id -u) = 0:0 && echo x >/dev/shm/x"))
    spec["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{other}/ns/user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    b = box(spec=spec)
    b.make()
    b.start()
    assert b.wait() == 0


def test_refused(pod: MakePod, box: MakeBox) -> None:
    p, taken = pod(), box("sleep", "1000")
    taken.make()
    with refused("UNIMPLEMENTED", "root file system"):
        p.create(config(), rootfs=[mount_pb2.Mount(type="bind", source="/")])
    with refused("INVALID_ARGUMENT", "runtime.v1.Nonsense"):
        p.create(options={"type_url": "runtime.v1.Nonsense"})
    with refused("INVALID_ARGUMENT", "/no/such/namespace"):
        p.create(config(), netns_path="/no/such/namespace")
    (p.bundle / "config.json").write_text("[]")
    with refused("INVALID_ARGUMENT", "config.json"):
        p.create()
    name, p.id = p.id, "../up"
    with refused("INVALID_ARGUMENT", "../up"):
        p.create(config())
    p.id = taken.id
    with refused("ALREADY_EXISTS", taken.id):
        p.create(config())
    with refused("NOT_FOUND", taken.id):
        p.stop()
    p.id = name
    p.create(config())
    with refused("ALREADY_EXISTS", p.id):
        p.create(config())


@pytest.fixture
def own_daemon(place: Path) -> Iterator[Daemon]:
    with Daemon(place / "own", config=f'socket = "{place}/own/run/shimd.sock"\nstate = "{place}/own/state"\n') as own:
        yield own


@pytest.mark.parametrize("dies", [False, True], ids=["lives on", "dies meanwhile"])
def test_daemon_comes_back(own_daemon: Daemon, place: Path, new_id: Callable[[], str], *, dies: bool) -> None:
    with own_daemon.client() as client:
        p = Pod(client, new_id(), place)
        pid = p.run(config("web"))
    own_daemon.kill()
    if dies:
        os.kill(pid, signal.SIGKILL)
        wait.process_gone(pid)
    own_daemon.start()
    with own_daemon.client() as client:
        p.client = client
        status = p.status()
        assert (status.pid, status.state) == ((0, "SANDBOX_NOTREADY") if dies else (pid, "SANDBOX_READY"))
        waiting = p.waiting()
        p.stop()
        assert waiting.result().exit_status == 137
        p.shutdown()


def test_launcher_removes_a_pod_whose_daemon_is_gone(
    own_daemon: Daemon, place: Path, new_id: Callable[[], str], bundle: Callable[..., Path], busybox: Path
) -> None:
    with own_daemon.client(namespace="k8s.io") as client:
        p = Pod(client, new_id(), place)
        pid = p.run(config("web"))
        b = Box(client, new_id(), bundle(p.member(pid, "sleep", "1000"), rootfs=busybox))
        b.make()
        pids = (pid, b.start())
    own_daemon.kill()
    command = [str(LAUNCHER), "-namespace", "k8s.io", "-id", p.id, "-bundle", str(place), "delete"]
    environment = {**os.environ, "SHIMD_CONFIG": str(own_daemon.config)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stderr == b""
    for each in pids:
        wait.process_gone(each)
    assert os.listdir(own_daemon.state / "containers/k8s.io") == []
    own_daemon.start()
