"""The daemon's containers as units of systemd: what containerd, its CRI plugin and Docker ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Packed

from shimd.api.containerd import runc_options_pb2 as runc
from shimd.api.containerd import runtime_options_pb2 as generic
from tests.daemon.boxes import MakeBox
from tests.lab.systemd_rig import ABSENT, show
from tests.support.specs import runc_default

pytestmark = pytest.mark.lab("systemd")

SYSTEMD = runc.Options(systemd_cgroup=True)
OF_CRI = generic.Options(config_body=b"SystemdCgroup = true")


def packed(message: runc.Options | generic.Options) -> Packed:
    return Packed(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.mark.parametrize(
    ("path", "options", "unit"),
    [
        ("", packed(SYSTEMD), "runc-{}:{}.scope"),
        ("lab-pod.slice:cri-containerd:x", packed(OF_CRI), "cri-containerd-x.scope"),
        ("system.slice:docker:x", Packed(), "docker-x.scope"),
    ],
)
def test_a_whole_life(box: MakeBox, path: str, options: Packed, unit: str) -> None:
    spec = runc_default("sleep", "1000")
    spec["linux"]["cgroupsPath"] = path
    b = box(spec=spec)
    name = unit.format(b.client.namespace, b.id)
    pid = b.make(options=options)
    assert Path(f"/proc/{pid}/cgroup").read_text().endswith(f"/{name}\n")
    b.start()
    b.exec("e", "sleep", "1000")
    assert Path(f"/proc/{b.start('e')}/cgroup").read_text() == Path(f"/proc/{pid}/cgroup").read_text()
    assert show(name, "ActiveState") == {"ActiveState": "active"}
    b.kill(everyone=True)
    b.wait("e")
    b.wait()
    b.delete("e")
    b.delete()
    assert show(name, "LoadState") == ABSENT


HOG = ("tail", "-c", "200m", "/dev/zero")


def limited(*args: str) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["linux"]["resources"]["memory"] = {"limit": 20 << 20, "swap": 20 << 20}
    return spec


def test_memory_hogs_are_told_of(box: MakeBox) -> None:
    """Each is its unit's only process, so systemd and we hurry to the same cgroup."""
    for _ in range(5):
        b = box(spec=limited(*HOG))
        b.make(options=packed(SYSTEMD))
        b.start()
        assert b.wait() == 137
        b.delete()
        assert b.topics().count("/tasks/oom") == 1
        assert b.topics().index("/tasks/oom") < b.topics().index("/tasks/exit")


def test_who_is_killed_beside_a_memory_hog_is_none(box: MakeBox) -> None:
    other, hog = box(spec=limited("sleep", "1000")), box(spec=limited(*HOG))
    for b in (other, hog):
        b.make(options=packed(SYSTEMD))
        b.start()
    assert hog.wait() == 137
    other.kill()
    assert other.wait() == 137
    assert "/tasks/oom" in hog.topics()
    assert "/tasks/oom" not in other.topics()
