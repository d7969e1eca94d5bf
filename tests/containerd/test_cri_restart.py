"""containerd, or the daemon, ends and is started again while pods run."""

from __future__ import annotations

import os
import signal

import pytest

from tests.containerd.pods import POD, Container, CriError, Pod, PodContainerd, await_true
from tests.containerd.rig import IS_RUNC
from tests.support import wait


def test_pods_are_found_again(own_pod_containerd: PodContainerd, name: str) -> None:
    waits = "until test -e /stop; do sleep 0.05; done; echo done; exit 5"
    with own_pod_containerd.client() as cri, Pod(own_pod_containerd, cri, name, network=POD) as pod:
        later, meanwhile = pod.container("sh", "-c", waits, name="later"), pod.container("sleep", "1000", name="now")
        address, pid, dies = pod.status().network.ip, later.pid(), meanwhile.pid()
        own_pod_containerd.stop(signal.SIGKILL)
        os.kill(dies, signal.SIGKILL)
        own_pod_containerd.start()
        assert (pod.state(), pod.status().network.ip) == ("READY", address)
        # From 1.7 on containerd has the shim remove a task that ended meanwhile, without asking how.
        assert meanwhile.ended() in (137, 255)
        assert (later.state(), later.pid()) == ("RUNNING", pid)
        later.run("touch", "/stop")
        assert later.ended() == 5
        # Started in this life of containerd, in the namespaces of the former one's pod.
        new = pod.container("hostname", name="new")
        assert new.ended() == 0
        assert new.log() == [("stdout", pod.config["hostname"])]


@pytest.mark.skipif(IS_RUNC, reason="about the daemon of shimd")
def test_crash_of_the_daemon_ends_pods_and_leaves_nothing(own_pod_containerd: PodContainerd, name: str) -> None:
    """containerd takes the end of the connections for that of all that it had there, and has it removed."""
    with own_pod_containerd.client() as cri, Pod(own_pod_containerd, cri, name, network=POD) as pod:
        container = pod.container("sleep", "1000")
        pids = (container.pid(), pod.info()["pid"])
        own_pod_containerd.daemon.kill()
        await_true(lambda: _is_over(pod, container))
        for pid in pids:
            wait.process_gone(pid)
        own_pod_containerd.daemon.start()


def _is_over(pod: Pod, container: Container) -> bool:
    """For a moment containerd only knows that a connection is closed."""
    try:
        return (pod.state(), container.state()) == ("NOTREADY", "EXITED")
    except CriError:
        return False
