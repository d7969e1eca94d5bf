"""NOTIFY_SOCKET: a service manager is told when the container is ready, and which process to watch."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.boxes import OURS_ONLY, Box, has_option
from tests.support import wait

# With the one that asks for an answer, which came to runc with other things that can be asked for.
MESSAGES = 3 if has_option("create", "--pidfd-socket") else 2


class Manager:
    """What systemd does with its end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.messages: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(wait.SECONDS)

    def receive(self, count: int) -> None:
        for _ in range(count):
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
            self.messages.append(data)
            for fd in fds:  # of the barrier
                os.close(fd)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(place: Path) -> Iterator[Manager]:
    made = Manager(place / "manager")
    yield made
    made.close()


def say(box: Box, message: bytes) -> None:
    """As the container would: its socket is seen from the host, too."""
    path = box.runtime.root / box.id / "notify" / "notify.sock"
    while not path.exists():
        pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.send(message)


def call(box: Box, manager: Manager, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*box.runtime.command, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "NOTIFY_SOCKET": manager.path},
    )


def test_start_waits_until_the_container_is_ready(box: Box, manager: Manager) -> None:
    box.shell("exec sleep 1000")
    box.write()
    with call(box, manager, "create", "--bundle", str(box.bundle), box.id) as process:
        assert process.wait(wait.SECONDS) == 0
    with call(box, manager, "start", box.id) as process:
        say(box, b"STATUS=on the way")
        say(box, b"READY=1")
        manager.receive(MESSAGES)
        assert process.wait(wait.SECONDS) == 0
    pid = box.state()["pid"]
    expected = [b"READY=1", b"MAINPID=%d" % pid, b"BARRIER=1"]
    assert [message.rstrip(b"\n") for message in manager.messages] == expected[:MESSAGES]
    assert box.status() == "running"


def test_run_detached_does_as_well(box: Box, manager: Manager) -> None:
    box.shell("exec sleep 1000")
    box.write()
    with call(box, manager, "run", "--detach", "--bundle", str(box.bundle), box.id) as process:
        say(box, b"READY=1")
        manager.receive(MESSAGES)
        assert process.wait(wait.SECONDS) == 0
    assert manager.messages[1].rstrip(b"\n") == b"MAINPID=%d" % box.state()["pid"]


def test_run_in_the_foreground_is_the_main_process_itself(box: Box, manager: Manager) -> None:
    box.shell("exec sleep 1000")
    box.write()
    with call(box, manager, "run", "--bundle", str(box.bundle), box.id) as process:
        say(box, b"READY=1")
        manager.receive(MESSAGES)
        assert manager.messages[1].rstrip(b"\n") == b"MAINPID=%d" % process.pid
        box.runtime("kill", box.id, "KILL")
        assert process.wait(wait.SECONDS) == 137
    assert os.listdir(box.runtime.root) == []


@OURS_ONLY  # runc waits for whoever has to reap it
def test_a_container_that_ends_before_it_is_ready(box: Box, manager: Manager) -> None:
    box.shell("exit 3")
    box.write()
    with call(box, manager, "run", "--detach", "--bundle", str(box.bundle), box.id) as process:
        assert process.wait(wait.SECONDS) == 0
    box.runtime("delete", "--force", box.id)
    assert os.listdir(box.runtime.root) == []


def test_the_container_sees_the_socket(box: Box, manager: Manager, place: Path) -> None:
    box.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    box.shell(
        "echo $NOTIFY_SOCKET; stat -c %a $NOTIFY_SOCKET; touch /run/notify/x 2>/dev/null && echo writable;"
        "while [ ! -e /go ]; do sleep 0.05; done"
    )
    box.write()
    output = place / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id],
            stdin=subprocess.DEVNULL,
            stdout=out,
            env={**os.environ, "NOTIFY_SOCKET": manager.path},
        )
    with process:
        say(box, b"READY=1")
        manager.receive(MESSAGES)
        (box.bundle / "rootfs/go").touch()
        process.wait(wait.SECONDS)
    assert output.read_text() == "/run/notify/notify.sock\n777\n"


@OURS_ONLY
def test_a_manager_that_is_gone(box: Box, manager: Manager) -> None:
    box.shell("exec sleep 1000")
    box.write()
    os.unlink(manager.path)
    with call(box, manager, "run", "--detach", "--bundle", str(box.bundle), box.id) as process:
        threading.Thread(target=say, args=(box, b"READY=1")).start()
        assert process.wait(wait.SECONDS) == 1
        assert process.stderr is not None
        assert b"notify" in process.stderr.read()
    assert os.listdir(box.runtime.root) == []
