"""shimctl as people and scripts call it: a process of its own, with pipes or on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as api
from tests.support import wait
from tests.support.client import Client
from tests.support.daemon import ROOT
from tests.support.specs import runc_default
from tests.support.terminal import Terminal

COMMAND = (sys.executable, "-m", "clients.shimctl")


class Shimctl:
    """Bound to a daemon and a namespace by the variables that a shell would have set."""

    def __init__(self, socket: str, client: Client, rootfs: Path) -> None:
        self.client = client
        self.variables = {"SHIMD_ADDRESS": socket, "SHIMD_NAMESPACE": client.namespace, "PYTHONPATH": str(ROOT)}
        self.rootfs = str(rootfs)

    def __call__(self, *args: str, stdin: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end; fails unless it ends with ``code`` (None: whatever)."""
        done = subprocess.run(
            [*COMMAND, *args],
            input=stdin.decode(),
            capture_output=True,
            text=True,
            env={**os.environ, **self.variables},
            timeout=wait.SECONDS,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self("--output", "json", *args).stdout)

    def begin(self, *args: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Started, with pipes unless ``streams`` says otherwise; to be used as a context manager."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *args], env={**os.environ, **self.variables}, **pipes | streams)

    def on_terminal(self, *args: str, rows: int = 24, columns: int = 80) -> Terminal:
        return Terminal([*COMMAND, *args], rows=rows, columns=columns, env=self.variables)

    def in_rootfs(self, *args: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
        """``run`` of a program in the rootfs."""
        return ("run", *options, "--rootfs", self.rootfs, *args)

    def daemonized(self, name: str, *args: str) -> None:
        """A container in the background: as by ``run --detach``, but quicker."""
        spec = runc_default(*args, rootfs=self.rootfs)
        run = self.client.runtime.Run(
            api.RunRequest(id=name, spec=json.dumps(spec).encode(), keep=True, stdio=api.Stdio(stdout="attach:"))
        )
        while not next(run).HasField("started"):
            pass
        run.cancel()


def remove_all(client: Client) -> None:
    """The containers of the client's namespace, in whatever state."""
    for found in client.runtime.List(api.ListRequest()).containers:
        with contextlib.suppress(grpc.RpcError):
            client.task.Shutdown(task.ShutdownRequest(id=found.id, now=True))


@pytest.fixture
def shimctl(client: Client, busybox: Path, daemon: Any) -> Iterator[Shimctl]:
    yield Shimctl(daemon.socket, client, busybox)
    remove_all(client)
