"""What a container does with the streams of the call that makes it."""

from __future__ import annotations

import socket
import subprocess

from tests.container.boxes import Box
from tests.support import wait


def test_a_created_container_with_a_terminal_holds_no_pipe_of_its_creator(box: Box) -> None:
    box.spec["process"]["terminal"] = True
    box.write()
    path = box.bundle / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [*box.runtime.command, "create", "--bundle", str(box.bundle), "--console-socket", str(path), box.id]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            wait.readable(running.stdout.fileno(), what="the end of the creator's output")
            assert running.stdout.read() == b""
        assert running.returncode == 0
        with listener.accept()[0] as connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        with open(descriptors[0], "rb"):
            assert box.status() == "created"
