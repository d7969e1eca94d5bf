"""runc, crun and shimrun through their command lines, each with a worker process of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.measure import Sample

ROOT = Path(__file__).parents[1]


class Worker:
    """``bench.worker``, with its requests and answers. Use as a context manager."""

    def __init__(self, name: str, *, without_unified: bool, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        arguments = ["--without-unified"] if without_unified else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ask(self, **request: Any) -> Sample:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "the worker died"}')
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return Sample(answer["seconds"], answer["cpu"], answer["bytes"])


class Peer:
    """A runtime with runc's command line. Use as a context manager."""

    def __init__(self, program: str, folder: Path) -> None:
        """``program`` is looked for in PATH unless it is a path."""
        found = shutil.which(program)
        if found is None:
            raise FileNotFoundError(f"{program} is not installed")
        self.name = name = Path(program).name
        self._folder = folder
        self._runtime = [found, "--root", str(folder / f"{name}-state")]
        self._numbers = itertools.count(1)
        self._idle: list[str] = []
        # runc works with the hybrid cgroup set-up, crun refuses it; neither pays for the preparation.
        self._worker = Worker(name, without_unified=name == "crun")

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in self._idle:
            self._ask(do="run", commands=[[*self._runtime, "delete", "--force", container]], concurrency=1)
        self._worker.__exit__()

    def version(self) -> str:
        output = subprocess.run([self._runtime[0], "--version"], capture_output=True, text=True, check=True).stdout
        return output.splitlines()[0].split()[-1]

    def run(self, bundle: Path) -> Sample:
        return self.batch(bundle, count=1, concurrency=1)

    def batch(self, bundle: Path, *, count: int, concurrency: int) -> Sample:
        commands = [[*self._runtime, "run", "--bundle", str(bundle), self._new_id()] for _ in range(count)]
        return self._ask(do="run", commands=commands, concurrency=concurrency)

    def life(self, bundle: Path) -> Sample:
        """create, start, wait, delete"""
        container = self._new_id()
        pid_file = str(self._folder / f"{container}.pid")
        create = ["create", "--bundle", str(bundle), "--pid-file", pid_file, container]
        commands = [[*self._runtime, *verb] for verb in (create, ["start", container], ["delete", container])]
        return self._ask(do="life", commands=commands, pid_file=pid_file)

    def start_idle(self, bundle: Path) -> str:
        """A container that runs until the end of the benchmark."""
        container = self._new_id()
        verbs: Sequence[Sequence[str]] = (["create", "--bundle", str(bundle), container], ["start", container])
        for verb in verbs:
            self._ask(do="run", commands=[[*self._runtime, *verb]], concurrency=1)
        self._idle.append(container)
        return container

    def execute(self, container: str) -> Sample:
        command = [*self._runtime, "exec", container, "/bin/true"]
        return self._ask(do="run", commands=[command], concurrency=1)

    def state(self, container: str) -> Sample:
        return self._ask(do="run", commands=[[*self._runtime, "state", container]], concurrency=1)

    def read(self, bundle: Path) -> Sample:
        """Its output through a pipe."""
        return self._ask(do="read", command=[*self._runtime, "run", "--bundle", str(bundle), self._new_id()])

    def _new_id(self) -> str:
        return f"bench-{self.name}-{self._worker.pid}-{next(self._numbers)}"

    def _ask(self, **request: Any) -> Sample:
        return self._worker.ask(**request)
