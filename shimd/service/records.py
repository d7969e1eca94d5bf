"""What the service remembers of containers and their processes. Plain state: the rules are in lifecycle.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shimd.api.containerd import process_pb2
from shimd.errors import NotFound
from shimd.records import Record
from shimd.runtime.model import launch_name
from shimd.runtime.state import SANDBOX_ANNOTATION

if TYPE_CHECKING:
    from shimd.oci.model import Process as ProcessSpec
    from shimd.runtime.model import Container as RuntimeContainer
    from shimd.runtime.model import ExecProcess
    from shimd.runtime.rootfs import RootfsMount
    from shimd.supervise.exits import Exit
    from shimd.supervise.oom import OomWatcher
    from shimd.supervise.streams import Streams

Status = process_pb2.Status
CREATED, RUNNING, STOPPED = process_pb2.CREATED, process_pb2.RUNNING, process_pb2.STOPPED
PAUSED, PAUSING = process_pb2.PAUSED, process_pb2.PAUSING


class StdioPaths(Record):
    """Where the streams go, as the client said it: "", a path, or a URI."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class Process:
    """The first process of a container, or an exec (added, then started)."""

    __slots__ = (
        "container", "exec_id", "exit_held", "exited", "followed", "launched", "pid", "spec", "started_at_ns",
        "starting", "stdio", "streams", "terminal", "timings",
    )  # fmt: skip

    def __init__(self, container: Container, exec_id: str, stdio: StdioPaths) -> None:
        self.container = container
        self.exec_id = exec_id
        self.stdio = stdio
        self.terminal = False
        self.followed = False  # a client attaches as soon as it runs
        self.spec: ProcessSpec | None = None
        self.pid = 0
        self.started_at_ns = 0
        self.streams: Streams | None = None
        self.launched: ExecProcess | None = None  # of an exec
        self.timings: dict[str, float] = {}  # milliseconds by phase
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        # An exit that arrives while Start is under way waits here until the start event is out.
        self.starting = False
        self.exit_held: Exit | None = None

    @property
    def id(self) -> str:
        """As in exit events: the exec's id, or the container's."""
        return self.exec_id or self.container.id

    @property
    def launch_name(self) -> str:
        return launch_name(*self.container.key, self.exec_id)

    @property
    def exit(self) -> Exit | None:
        return self.exited.result() if self.exited.done() else None

    @property
    def status(self) -> Status.ValueType:
        if self.exited.done():
            return STOPPED
        if not self.started_at_ns:
            return PAUSED if self.container.paused and not self.exec_id else CREATED
        if self.container.pausing:
            return PAUSING
        return PAUSED if self.container.paused else RUNNING

    def set_started(self, pid: int) -> None:
        self.pid = pid
        self.started_at_ns = time.time_ns()


def status_word(process: Process) -> str:
    return Status.Name(process.status).lower()


class Container:
    """A container and its processes; ``lock`` is held by whatever changes it, never while waiting for a client."""

    __slots__ = (
        "bundle", "created_at_ns", "deleted", "execs", "id", "init", "init_exit", "lock", "namespace", "oom_killed",
        "oom_watcher", "paused", "pausing", "rootfs", "runtime", "signals",
    )  # fmt: skip

    def __init__(self, namespace: str, container_id: str, bundle: str, stdio: StdioPaths) -> None:
        self.namespace = namespace
        self.id = container_id
        self.bundle = bundle
        self.rootfs: Sequence[RootfsMount] = ()
        self.created_at_ns = time.time_ns()
        self.init = Process(self, "", stdio)
        self.execs: dict[str, Process] = {}
        self.lock = asyncio.Lock()
        self.paused = False
        self.pausing = False
        self.deleted = False
        self.oom_killed = False
        self.oom_watcher: OomWatcher | None = None
        self.signals: set[asyncio.Future[None]] = set()  # that are being sent
        self.init_exit: Exit | None = None  # known, but published only after those of the execs
        self.runtime: RuntimeContainer

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.id

    @property
    def origin(self) -> str:
        """The name of the containerd that it belongs to, "" without one."""
        return str(self.runtime.state.service.get("origin", ""))

    @property
    def is_sandbox(self) -> bool:
        """Whether it only holds the namespaces of a pod."""
        return "sandbox" in self.runtime.state.service

    @property
    def sandbox(self) -> str:
        """The id of the sandbox that it belongs to, its own if it is one for Kubernetes, "" without one."""
        return str(self.runtime.state.annotations.get(SANDBOX_ANNOTATION, ""))

    @property
    def io_owner(self) -> tuple[int, int]:
        """uid and gid that own the pipes of its standard streams."""
        service = self.runtime.state.service
        return service.get("io_uid", 0), service.get("io_gid", 0)

    @property
    def fields(self) -> dict[str, str]:
        """For log lines."""
        return {"namespace": self.namespace, "id": self.id}

    def process(self, exec_id: str) -> Process:
        """The first process for "", else the exec; raises NotFound."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise NotFound(f"process does not exist {exec_id}")
        return process

    def running_execs(self) -> list[Process]:
        return [p for p in self.execs.values() if (p.started_at_ns or p.starting) and not p.exited.done()]
