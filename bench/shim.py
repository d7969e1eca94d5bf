"""One life of a task as containerd's shim manager drives it, without containerd: what is the shim's part of the time.

The shim is started and asked over ttrpc as containerd does; what it takes besides is its own. Runs in ``bench.worker``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clients.containerd_shim import wire
from clients.containerd_shim.errors import LauncherError
from clients.containerd_shim.ttrpc import Connection

SECONDS = 30.0


def live(request: dict[str, Any]) -> None:
    """``program``: the command of the shim without the action; ``options``: those of Create, an Any in hex."""
    with _log(request["bundle"]):
        command = [*request["program"], "start"]
        done = subprocess.run(
            command, cwd=request["bundle"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )
        path, service = read_answer(done.stdout.decode())
        with Connection(path, SECONDS) as connection:
            try:
                _life(connection, service, request)
            except LauncherError as error:
                raise OSError(f"{request['program'][0]}: {error}") from error


@contextmanager
def _log(bundle: str) -> Iterator[None]:
    """The FIFO where a shim writes its log."""
    path = f"{bundle}/log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(reader)
        os.unlink(path)


def _life(connection: Connection, service: str, request: dict[str, Any]) -> None:
    task = wire.text(1, request["id"])

    def call(method: str, more: bytes = b"") -> wire.Fields:
        return connection.call(service, method, task + more, namespace=request["namespace"])

    try:
        call("Create", wire.text(2, request["bundle"]) + wire.text(10, bytes.fromhex(request["options"])))
        call("Start")
        if status := wire.last_number(call("Wait"), 1):
            raise OSError(f"the task {request['id']} ended with {status}")
        call("Delete")
    finally:
        with suppress(ConnectionResetError):  # a shim of its own ends before it has answered
            call("Shutdown", wire.number(2, 1))


def read_answer(answer: str) -> tuple[str, str]:
    """(path of the socket, name of the service): an address alone, or JSON, means version 2 unless it says 3."""
    fields = json.loads(answer) if answer.startswith("{") else {"address": answer, "version": 2}
    return str(fields["address"]).removeprefix("unix://"), f"containerd.task.v{fields['version']}.Task"
