"""shimd through its API: a private daemon, and the operations that are measured on it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Sample, cpu_seconds, memory_kib
from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as api
from tests.support.daemon import Daemon
from tests.support.fifo import Fifos

CHUNK = 1 << 20
TRUE = json.dumps({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}).encode()


class Shimd:
    """One daemon and one client of it. ``phases`` collects what ``run`` took inside the daemon, in seconds."""

    name = "shimd"

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self._folder = folder
        self._daemon = daemon
        self._keeper = daemon.keeper_pid()
        self._client = daemon.client(namespace="bench")
        self._numbers = itertools.count(1)
        self._idle: list[str] = []
        self.phases: dict[str, list[float]] = {}

    def version(self) -> str:
        return str(self._client.runtime.Version(api.VersionRequest()).version)

    def run(self, bundle: Path) -> Sample:
        """The whole life over one call."""
        with self._timed() as timing:
            phases = self._run(bundle)
        for phase in phases:
            self.phases.setdefault(phase.name, []).append(_seconds(phase.duration))
        return timing.sample

    def _run(self, bundle: Path) -> list[Any]:
        """The phases that the daemon reports."""
        status = -1
        phases: list[Any] = []
        for event in self._client.runtime.Run(api.RunRequest(id=self._new_id(), bundle=str(bundle))):
            kind = event.WhichOneof("event")
            if kind == "output":
                continue
            message = getattr(event, kind)
            phases += message.phases
            if kind == "exited":
                status = message.exit_status
        assert status == 0, f"exit status {status}"
        return phases

    def batch(self, bundle: Path, *, count: int, concurrency: int) -> Sample:
        """``count`` containers over Run, so many at a time."""
        with ThreadPoolExecutor(concurrency) as pool, self._timed() as timing:
            list(pool.map(self._run, [bundle] * count))
        return timing.sample

    def life(self, bundle: Path) -> Sample:
        """Create, Start, Wait, Delete, as containerd calls them: Wait is under way before Start."""
        container = self._new_id()
        calls = self._client.task
        with self._timed() as timing:
            calls.Create(task.CreateTaskRequest(id=container, bundle=str(bundle)))
            waiting = calls.Wait.future(task.WaitRequest(id=container))
            calls.Start(task.StartRequest(id=container))
            waiting.result()
            calls.Delete(task.DeleteRequest(id=container))
        return timing.sample

    def start_idle(self, bundle: Path) -> str:
        """A container that runs until ``stop_idle``."""
        container = self._new_id()
        self._client.task.Create(task.CreateTaskRequest(id=container, bundle=str(bundle)))
        self._client.task.Start(task.StartRequest(id=container))
        self._idle.append(container)
        return container

    def stop_idle(self) -> None:
        for container in self._idle:
            waiting = self._client.task.Wait.future(task.WaitRequest(id=container))
            self._client.task.Kill(task.KillRequest(id=container, signal=9, all=True))
            waiting.result()
            self._client.task.Delete(task.DeleteRequest(id=container))
        self._idle.clear()

    def execute(self, container: str) -> Sample:
        """Exec, Start, Wait, Delete of a process in a container."""
        process = self._new_id()
        calls = self._client.task
        request = task.ExecProcessRequest(id=container, exec_id=process)
        request.spec.value = TRUE
        with self._timed() as timing:
            calls.Exec(request)
            waiting = calls.Wait.future(task.WaitRequest(id=container, exec_id=process))
            calls.Start(task.StartRequest(id=container, exec_id=process))
            status = waiting.result().exit_status
            calls.Delete(task.DeleteRequest(id=container, exec_id=process))
        assert status == 0, f"exit status {status}"
        return timing.sample

    def attach_execute(self, container: str) -> Sample:
        """The same over one call of Attach."""
        request = api.AttachRequest(exec=api.ExecRequest(id=container, process=TRUE))
        with self._timed() as timing:
            events = list(self._client.runtime.Attach(iter([request])))
        assert events[-1].exited.exit_status == 0
        return timing.sample

    def read(self, bundle: Path) -> Sample:
        """Its output through a FIFO, timed from the first byte."""
        container = self._new_id()
        with Fifos(self._folder / container, stderr=False) as fifos:
            self._client.task.Create(task.CreateTaskRequest(id=container, bundle=str(bundle), stdout=fifos.stdout))
            self._client.task.Start(task.StartRequest(id=container))
            fd = fifos.stdout_fd()
            os.set_blocking(fd, True)
            total = len(os.read(fd, CHUNK))
            with self._timed() as timing:
                while chunk := os.read(fd, CHUNK):
                    total += len(chunk)
            sample = timing.sample._replace(bytes=total)
            self._client.task.Wait(task.WaitRequest(id=container))
            self._client.task.Delete(task.DeleteRequest(id=container))
        return sample

    def memory(self) -> dict[str, int]:
        """Of the daemon and the keeper together, in KiB."""
        both = [memory_kib(pid) for pid in (self._daemon.pid, self._keeper)]
        return {name: sum(one[name] for one in both) for name in both[0]}

    def close(self) -> None:
        self.stop_idle()
        self._client.close()

    @contextmanager
    def _timed(self) -> Iterator[_Timing]:
        timing = _Timing()
        cpu = self._cpu()
        start = time.perf_counter()
        yield timing
        seconds = time.perf_counter() - start
        timing.sample = Sample(seconds, self._cpu() - cpu)

    def _cpu(self) -> float:
        """CPU seconds of the daemon, the keeper and all container processes that it has reaped.

        The last come in units of 10 ms: a single figure is coarse, the mean of many is right.
        """
        with open(f"/proc/{self._keeper}/stat") as file:
            children = file.read().rpartition(")")[2].split()[13:15]
        reaped = sum(map(int, children)) / os.sysconf("SC_CLK_TCK")
        return cpu_seconds(self._daemon.pid) + cpu_seconds(self._keeper) + reaped

    def _new_id(self) -> str:
        return f"bench-shimd-{os.getpid()}-{next(self._numbers)}"


class _Timing:
    """Where ``_timed`` leaves its result."""

    sample = Sample(0.0)


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9
