"""A runtime to test with, over either launcher, and what the tests do with it again and again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from shimd.host.facts import HostFacts, probe
from shimd.keeper.client import KeeperClient, read_exits, spawn_keeper
from shimd.linux.process import set_child_subreaper
from shimd.oci.model import Process
from shimd.oci.read import read_process
from shimd.runtime.container import Container, CreateOptions, ExecOptions, ExecProcess, Runtime, Stdio
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.launch import KeeperLauncher, Launcher
from shimd.runtime.model import DEFAULT_EXEC, NO_STDIO
from tests.support import wait
from tests.support.bundle import make_bundle


class Output:
    """A pipe whose write end is the stdout and stderr of a process, or several."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def stdio(self) -> Stdio:
        return Stdio(stdout=self.write_end, stderr=self.write_end)

    def text(self) -> str:
        """Everything, when all writers are gone."""
        self.close_write_end()
        return wait.read_to_end(self.read_end).decode()

    def line(self) -> str:
        """Up to the end of the next line."""
        return wait.read_until(self.read_end, b"\n").decode()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        os.close(self.read_end)


class Rig:
    def __init__(self, host: HostFacts, launcher: Launcher, place: Path, container_id: str) -> None:
        self.runtime = Runtime(host, launcher, str(place / "state"), seccomp_cache_dir=str(place / "seccomp"))
        self.launcher = launcher
        self.place = place
        self.id = container_id
        self.bundle = place / "bundle"
        self._exits: dict[str, int] = {}

    def create(self, spec: dict[str, Any], *, stdio: Stdio = NO_STDIO, **options: Any) -> Container:
        make_bundle(self.bundle, spec)
        return self.runtime.create(self.id, str(self.bundle), stdio=stdio, options=CreateOptions(**options))

    def exec(
        self,
        container: Container,
        *args: str,
        name: str = "x",
        stdio: Stdio = NO_STDIO,
        options: ExecOptions = DEFAULT_EXEC,
        **fields: Any,
    ) -> ExecProcess:
        document = {"args": args, "cwd": "/", "env": ["PATH=/bin:/usr/bin:/sbin"], **fields}
        process: Process = read_process(json.dumps(document).encode())
        return self.runtime.exec(container, name, process, stdio=stdio, options=options)

    def exit_code(self, name: str, pid: int) -> int:
        """Wait for the end of a launch."""
        if isinstance(self.launcher, DirectLauncher):
            return self.launcher.wait(name, pid).code
        assert isinstance(self.launcher, KeeperLauncher)
        with closing(self.launcher.client.subscribe()) as subscription:
            while name not in self._exits:
                wait.readable(subscription.fileno(), what=f"the exit of {name}")
                exits = read_exits(subscription)
                assert exits is not None, "the keeper is gone"
                self._exits |= {entry.name: entry.code for entry in exits}
        return self._exits.pop(name)

    def wait(self, container: Container) -> int:
        return self.exit_code(container.id, container.pid)

    def wait_exec(self, container: Container, process: ExecProcess) -> int:
        code = self.exit_code(f"{container.id}/{process.id}", process.pid)
        os.close(process.pidfd)
        return code

    def run(self, spec: dict[str, Any], **options: Any) -> tuple[int, str]:
        """The whole life of a container: exit code and output."""
        with self.output() as output:
            container = self.create(spec, stdio=output.stdio(), **options)
            output.close_write_end()
            if options.get("gate", True):
                self.runtime.start(container)
            text = output.text()
            code = self.wait(container)
            assert self.runtime.delete(container) == ()
        return code, text

    def output_of(self, container: Container, *args: str, **fields: Any) -> tuple[int, str]:
        """Exit code and output of an exec."""
        with self.output() as output:
            process = self.exec(container, *args, stdio=output.stdio(), **fields)
            text = output.text()
            return self.wait_exec(container, process), text

    def end(self, container: Container) -> None:
        """Delete by force, and reap."""
        self.runtime.kill(container, 9)
        self.wait(container)
        self.runtime.delete(container, force=True)

    @contextmanager
    def output(self) -> Iterator[Output]:
        output = Output()
        try:
            yield output
        finally:
            output.close()

    def state_dir(self) -> Path:
        return self.place / "state" / self.id


@contextmanager
def rig_with(launcher: str, place: Path, container_id: str) -> Iterator[Rig]:
    """``launcher``: "direct", or "keeper" for one of the test's own."""
    if launcher == "direct":
        yield Rig(probe(), DirectLauncher(), place, container_id)
        return
    with keeper_launcher(place / "keeper") as made:
        yield Rig(probe(), made, place, container_id)


@contextmanager
def keeper_launcher(place: Path) -> Iterator[KeeperLauncher]:
    """A keeper of the test's own, which must have nothing left in the end."""
    place.mkdir(mode=0o700)
    # The keeper is nobody's child; whoever runs the tests as process 1 may take seconds to reap it.
    set_child_subreaper(1)
    try:
        spawn_keeper(str(place))
        with KeeperClient.connect(str(place)) as client:
            keeper = client.hello()
            try:
                yield KeeperLauncher(client)
                left = client.list()
                assert (left.alive, left.held, left.exits) == ({}, (), ())
            finally:
                client.stop(force=True)
                os.waitpid(keeper, 0)
    finally:
        set_child_subreaper(0)
