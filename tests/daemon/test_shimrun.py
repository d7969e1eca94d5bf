"""One state format: containers of the daemon in the hands of shimrun, and the other way round."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.specs import runc_default

SHIMRUN = str(Path(sys.executable).parent / "shimrun")


def shimrun(daemon: Daemon, namespace: str, *args: str, code: int = 0) -> str:
    command = [SHIMRUN, "--root", str(daemon.state / "containers" / namespace), *args]
    with tempfile.TemporaryFile() as output:  # not a pipe: a container keeps it open
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, timeout=60, check=False)
        output.seek(0)
        text = output.read().decode()
    assert done.returncode == code, text
    return text


@pytest.fixture
def adopting() -> Iterator[None]:
    """What shimrun leaves running becomes a child of ours."""
    known = wait.children()
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    yield
    wait.reap_children_but(known)
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(0), 0, 0, 0)


def test_shimrun_sees_and_enters_containers_of_the_daemon(daemon: Daemon, client: Client, box: MakeBox) -> None:
    made = box("sleep", "1000")
    pid = made.make()
    assert shimrun(daemon, client.namespace, "list", "-q") == f"{made.id}\n"
    made.start()
    state = json.loads(shimrun(daemon, client.namespace, "state", made.id))
    assert (state["id"], state["pid"], state["status"]) == (made.id, pid, "running")
    assert shimrun(daemon, client.namespace, "exec", made.id, "sh", "-c", "echo $PPID; exit 3", code=3) == "0\n"
    shimrun(daemon, client.namespace, "pause", made.id)
    assert json.loads(shimrun(daemon, client.namespace, "state", made.id))["status"] == "paused"
    shimrun(daemon, client.namespace, "resume", made.id)
    shimrun(daemon, client.namespace, "update", "--pids-limit", "77", made.id)
    shimrun(daemon, client.namespace, "kill", made.id, "TERM")
    shimrun(daemon, client.namespace, "kill", made.id, "KILL")
    assert made.wait() == 137
    made.delete()
    assert shimrun(daemon, client.namespace, "list", "-q") == ""


def test_the_daemon_takes_over_containers_of_shimrun(
    place: Path, busybox: Path, container_id: str, adopting: None
) -> None:
    bundle = make_bundle(
        place / "bundle", runc_default(*shell("trap 'exit 5' TERM; while :; do sleep 0.05; done")), busybox
    )
    with Daemon(place / "daemon") as daemon:
        daemon.stop()
        shimrun(daemon, "default", "create", "--bundle", str(bundle), container_id)
        daemon.start()
        with daemon.client() as client:
            listed = client.runtime.List(api.ListRequest())
            assert [entry.id for entry in listed.containers] == [container_id]
            box = Box(client, container_id, bundle)
            assert box.status() == "CREATED"
            box.start()
            assert box.status() == "RUNNING"
            box.exec("x", "true")
            box.start("x")
            assert box.wait("x") == 0
            box.delete("x")
            assert len(json.loads(shimrun(daemon, "default", "ps", "-f", "json", container_id))) >= 1
            box.kill()
            assert box.wait() in (137, 255)  # its parent knows; we, where the kernel tells
            box.delete()
            with refused("NOT_FOUND"):
                box.state()
        assert not os.path.exists(daemon.state / "containers" / "default" / container_id)
