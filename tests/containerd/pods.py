"""Pods through the CRI plugin of a private containerd, with the handler of deploy/containerd, and networks by CNI.

The daemons live in a network namespace of the test's own: bridges, addresses and routes of the plugins are made there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.containerd import image
from tests.containerd.cri import Cri, CriError
from tests.containerd.peers import Peer
from tests.containerd.rig import NAMESPACE, RUNTIME, Containerd
from tests.support import session, wait
from tests.support.leaks import cgroup_mount_points

ROOT = Path(__file__).parents[2]
PLUGINS = "/usr/lib/cni"
POD, CONTAINER, NODE = "POD", "CONTAINER", "NODE"  # whose a namespace is

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
# As kubelet does it with the cgroup driver "systemd": a slice for each pod.
IS_SYSTEMD = os.environ.get("LAB_VM") == "systemd"

_BASE = """\
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/containerd.sock"
"""
_CRI_1 = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
"""
_CRI_2 = """\
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{folder}/cni"
"""


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """For this thread, and what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("16sH14x", b"lo", 0)
            (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
        yield
    finally:
        assert libc.setns(before, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


class PodContainerd(Containerd):
    """``sandboxer``: "podsandbox", with a pause container, or "shim", which has the runtime hold the namespaces."""

    def __init__(self, folder: Path, peer: Peer, sandboxer: str = "podsandbox") -> None:
        self.sandboxer = sandboxer
        super().__init__(folder, peer)
        (folder / "cni").mkdir()
        plugin = {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "ipam": {"type": "host-local", "dataDir": f"{folder}/ipam", "ranges": [[{"subnet": "10.88.0.0/24"}]]},
        }
        network = {"cniVersion": "0.4.0", "name": session.TAG, "plugins": [plugin]}
        (folder / "cni/pods.conflist").write_text(json.dumps(network))

    def settings(self) -> str:
        newer = self.peer.version == "2"
        deployed = (ROOT / f"deploy/containerd/config-{2 if newer else 1}.toml").read_text()
        handler = deployed.replace("io.containerd.shimd.v2", RUNTIME)
        if self.sandboxer == "shim":
            handler, count = re.subn(r'# (sandboxer = "shim")', r"\1", handler)
            assert count == 1
        text = _BASE + (_CRI_2 if newer else _CRI_1)
        # The handler's file begins with the version, which must come first.
        version, _, tables = handler.partition("\n\n")
        return f"{version}\n{text.format(folder=self.folder, pause=image.PAUSE, plugins=PLUGINS)}{tables}"

    def import_images(self) -> None:
        for tarball in (image.build(self.folder), image.build(self.folder, image.PAUSE, ("sleep", "1000000"))):
            self.ctr("-n", "k8s.io", "images", "import", str(tarball))
        with self.client() as cri:
            for name in (image.NAME, image.PAUSE):
                await_true(lambda name=name: cri.call("ImageStatus", image={"image": name}).HasField("image"))

    def start(self) -> None:
        """Returns when there can be pods: the plugin first looks for those that run, and reads the networks."""
        super().start()
        with Cri(self.address) as cri:
            await_true(lambda: _is_ready(cri))

    def remove_all(self) -> None:
        with self.client() as cri:
            for pod in cri.call("ListPodSandbox").items:
                cri.call("StopPodSandbox", pod_sandbox_id=pod.id)
                cri.call("RemovePodSandbox", pod_sandbox_id=pod.id)

    def client(self) -> Cri:
        return Cri(self.address, self.logs)

    def logs(self) -> str:
        return f"containerd's log ends:\n{self.log_tail()}\nshimd's log ends:\n{self.daemon.log_tail()}"


class Pod:
    """Runs until the end of the ``with``; then it is removed with its containers. ``network``: "" for any."""

    def __init__(self, containerd: PodContainerd, cri: Cri, name: str, *, network: str = "", **config: Any) -> None:
        self.containerd = containerd
        self.cri = cri
        self.name = name
        self.cgroup = f"lab_{name.replace('-', '_')}.slice" if IS_SYSTEMD else f"{NAMESPACE}/{name}"
        self.logs = containerd.folder / "logs" / name
        self.id = ""
        # Before 2.3 (commit b32cecd31) containerd crashes on a sandbox of the shim's in the node's network.
        network = network or (POD if containerd.sandboxer == "shim" else NODE)
        namespaces = {"pid": CONTAINER, "network": network} | config.pop("namespaces", {})
        self.namespaces = namespaces
        self.config = {
            "metadata": {"name": name, "uid": f"{name}-uid", "namespace": "default"},
            "hostname": "" if network == NODE else name[:60],
            "log_directory": str(self.logs),
            "linux": {
                "cgroup_parent": f"/{self.cgroup}",
                "security_context": {"namespace_options": namespaces},
                "sysctls": config.pop("sysctls", {}),
            },
            **config,
        }

    def __enter__(self) -> Pod:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.id = self.cri.call("RunPodSandbox", config=self.config, runtime_handler="shimd").pod_sandbox_id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
        shutil.rmtree(self.logs)

    def remove(self) -> None:
        self.cri.call("StopPodSandbox", pod_sandbox_id=self.id)
        self.cri.call("RemovePodSandbox", pod_sandbox_id=self.id)
        remove_cgroups(self.cgroup)

    def status(self) -> Any:
        return self.cri.call("PodSandboxStatus", pod_sandbox_id=self.id).status

    def state(self) -> str:
        return ("READY", "NOTREADY")[self.status().state]

    def info(self) -> Any:
        """What containerd knows beside it; the form is its own."""
        return json.loads(self.cri.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True).info["info"])

    def container(self, *command: str, name: str = "main", start: bool = True, **config: Any) -> Container:
        linux = {"security_context": {"namespace_options": self.namespaces}} | config.pop("linux", {})
        wanted = {
            "metadata": {"name": name},
            "image": {"image": image.NAME},
            "command": command,
            "log_path": f"{name}.log",
            "linux": linux,
            **config,
        }
        made = self.cri.call("CreateContainer", pod_sandbox_id=self.id, config=wanted, sandbox_config=self.config)
        container = Container(self, made.container_id, self.logs / f"{name}.log")
        if start:
            container.start()
        return container


class Container:
    def __init__(self, pod: Pod, container_id: str, log: Path) -> None:
        self.pod = pod
        self.cri = pod.cri
        self.id = container_id
        self._log = log

    def start(self) -> None:
        self.cri.call("StartContainer", container_id=self.id)

    def stop(self, seconds: int) -> None:
        self.cri.call("StopContainer", container_id=self.id, timeout=seconds)

    def remove(self) -> None:
        self.cri.call("RemoveContainer", container_id=self.id)

    def status(self) -> Any:
        return self.cri.call("ContainerStatus", container_id=self.id).status

    def state(self) -> str:
        return ("CREATED", "RUNNING", "EXITED", "UNKNOWN")[self.status().state]

    def pid(self) -> int:
        answer = self.cri.call("ContainerStatus", container_id=self.id, verbose=True)
        return int(json.loads(answer.info["info"])["pid"])

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        await_true(lambda: self.state() == "EXITED")
        return int(self.status().exit_code)

    def run(self, *command: str) -> str:
        """The output of a command in it."""
        done = self.cri.call("ExecSync", container_id=self.id, cmd=command, timeout=30)
        assert done.exit_code == 0, f"{command}: {done.exit_code}\n{done.stdout.decode()}{done.stderr.decode()}"
        return str(done.stdout.decode())

    def log(self) -> list[tuple[str, str]]:
        """Stream and text of each line."""
        rows = [line.split(" ", 3) for line in self._log.read_text().splitlines()]
        assert all(re.match(r"\d{4}-\d\d-\d\dT", row[0]) and row[2] == "F" for row in rows), rows
        return [(row[1], row[3]) for row in rows]

    def cgroup_file(self, v1: str, v2: str) -> str:
        """A file of its cgroup: "memory/memory.limit_in_bytes" or "memory.max"."""
        controller, _, file = v1.partition("/")
        for point in cgroup_mount_points():
            folder = Path(point, self.pod.cgroup, f"cri-containerd-{self.id}.scope" if IS_SYSTEMD else self.id)
            for path in (folder / file if controller in os.path.basename(point).split(",") else None, folder / v2):
                if path is not None and path.exists():
                    return path.read_text().strip()
        raise AssertionError(f"no cgroup of {self.id} has {v1} or {v2}")


def _is_ready(cri: Cri) -> bool:
    try:
        conditions = cri.call("Status").status.conditions
    except CriError as error:
        if "not initialized yet" in error.details:
            return False
        raise
    return all(condition.status for condition in conditions)


def await_true(condition: Any) -> None:
    """Of what only an answer of containerd tells."""
    deadline = time.monotonic() + wait.SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # containerd has no call that waits for it


def remove_cgroups(path: str) -> None:
    """An empty parent of what a runtime has removed: making it was the test's wish."""
    if IS_SYSTEMD:
        subprocess.run(["systemctl", "stop", path], check=True)
    for point in cgroup_mount_points():
        with contextlib.suppress(OSError):
            os.rmdir(f"{point}/{path}")


def is_there() -> str:
    """ "", or why there can be no pods."""
    if not os.access(f"{PLUGINS}/bridge", os.X_OK):
        return "no CNI plugins: apt-get install containernetworking-plugins"
    return ""


__all__ = ["NODE", "POD", "Container", "Cri", "CriError", "Pod", "PodContainerd", "await_true", "own_network"]
