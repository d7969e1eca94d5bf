"""Exec, attach and forwarded ports as kubectl uses them: over the streaming server of containerd."""

from __future__ import annotations

import json

from tests.containerd.pods import POD, Cri, Pod, PodContainerd
from tests.support.websocket import END, RESIZE, STDERR, STDIN, STDOUT, Channels, exit_code


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
