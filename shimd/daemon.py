"""The daemon: builds every object, serves until it is told to stop, and leaves containers running when it does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import hashlib
import json
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata

import uvloop
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from shimd import logs, sockets
from shimd.api.containerd import sandbox_pb2, task_v2_pb2, task_v3_pb2
from shimd.api.v1 import containerd_pb2, runtime_pb2
from shimd.errors import FailedPrecondition, ShimdError
from shimd.events.bus import EventBus
from shimd.events.containerds import Containerds, Sockets, entrance_of, split_entrance
from shimd.host.doctor import doctor
from shimd.host.facts import HostFacts, probe
from shimd.keeper.client import KeeperClient, spawn_keeper
from shimd.oci.features import features
from shimd.plan.mount_options import OPTION_NAMES
from shimd.plan.seccomp import libseccomp_version
from shimd.records import Record
from shimd.rpc.entrances import Entrances
from shimd.rpc.grpc import build_server, set_serving
from shimd.rpc.service import Service
from shimd.rpc.ttrpc import TtrpcServer
from shimd.runtime.container import Runtime
from shimd.runtime.launch import KeeperLauncher
from shimd.service import recovery
from shimd.service.announce import Announcer
from shimd.service.containerds import ContainerdsService
from shimd.service.control import Control
from shimd.service.lifecycle import Lifecycle
from shimd.service.registry import Registry
from shimd.service.runtime import About, RuntimeService
from shimd.service.sandbox import SandboxService
from shimd.service.task import TaskService
from shimd.settings import DEFAULT_CONFIG, Settings, load_settings
from shimd.supervise.exits import Exits
from shimd.supervise.held import HeldStreams
from shimd.systemd import Notifier, listen_sockets

_TASK_V2 = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]
_TASK_V3 = task_v3_pb2.DESCRIPTOR.services_by_name["Task"]
_SANDBOX = sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"]
_RUNTIME = runtime_pb2.DESCRIPTOR.services_by_name["Runtime"]
_CONTAINERDS = containerd_pb2.DESCRIPTOR.services_by_name["Containerds"]
_DESCRIPTORS = (_TASK_V3, _TASK_V2, _SANDBOX, _RUNTIME, _CONTAINERDS)
_SERVICES = tuple(descriptor.full_name for descriptor in _DESCRIPTORS)

# What socket units call their descriptors; unnamed ones are for gRPC.
_GRPC = "grpc"
_TTRPC = "ttrpc"

# How long calls that are under way get at the end. Those that wait for a container would never end by themselves.
_GRACE = 1.0  # seconds

_KEEPER_INTERVAL = 1.0  # between attempts to start a keeper, seconds

_log = logging.getLogger(__name__)


class Places(Record):
    """Paths below the state directory."""

    state: str

    @property
    def lock(self) -> str:
        return os.path.join(self.state, "lock")

    @property
    def containers(self) -> str:
        return os.path.join(self.state, "containers")

    @property
    def containerds(self) -> str:
        return os.path.join(self.state, "containerds")

    @property
    def inner_socket(self) -> str:
        return os.path.join(self.state, "grpc.sock")


class Daemon:
    """Objects in the order in which they need each other; ``stack`` ends them in the reverse order."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        self.settings = settings
        self.notifier = notifier
        self.places = Places(settings.state)
        self.started_ns = time.time_ns()
        self._entrances: Entrances
        self._replacement: asyncio.Task[None] | None = None  # of a keeper that died

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ShimdError or OSError when it cannot begin."""
        async with contextlib.AsyncExitStack() as stack:
            stop = _stop_signal()
            self._prepare_directories()
            lock = stack.enter_context(_locked(self.places.lock))
            grpc_listener, ttrpc_listener = self._listeners(stack)
            keeper = await self._keeper(stack)
            containerds = self._containerds(stack, lock)
            lifecycle, services, bus = await self._build(stack, keeper, containerds)
            server, health_servicer = build_server(services, self.settings.api)
            sockets.unlink(self.places.inner_socket)
            server.add_insecure_port(f"unix:{self.places.inner_socket}")
            await server.start()
            allowed_uids = frozenset(self.settings.api.allowed_uids)
            ttrpc = TtrpcServer(services, allowed_uids)
            self._entrances = entrances = Entrances(ttrpc, self.places.inner_socket, allowed_uids)
            stack.callback(entrances.close)
            await containerds.resume({entrance_of(c.origin, c.namespace) for c in lifecycle.registry.all()})
            await entrances.open(grpc_listener, ttrpc_listener)
            await set_serving(health_servicer, _SERVICES, serving=True)
            self._settle_memory()
            _log.info("serving %s and %s", self.settings.socket, self.settings.ttrpc_path)
            self.notifier.send("READY=1", f"STATUS=serving {self.settings.socket}")
            watchdog = asyncio.create_task(self._watchdog())
            await stop
            # In this order: nobody new comes in, what is under way ends, then what it used goes away.
            self.notifier.send("STOPPING=1")
            _log.info("stopping; containers go on")
            watchdog.cancel()
            if self._replacement is not None:
                self._replacement.cancel()
            containerds.withdraw()
            entrances.stop_accepting()
            await set_serving(health_servicer, _SERVICES, serving=False)
            bus.close()
            await asyncio.gather(server.stop(_GRACE), ttrpc.stop(_GRACE))
            await lifecycle.finish()

    # ---- the parts -------------------------------------------------------------------------------------------------

    def _prepare_directories(self) -> None:
        for path in (self.places.state, self.places.containers, self.places.containerds):
            os.makedirs(path, 0o700, exist_ok=True)
            if os.stat(path).st_uid != os.geteuid():
                raise FailedPrecondition(f"state directory {path} belongs to another user")
            os.chmod(path, 0o700)
        for path in (self.settings.socket, self.settings.ttrpc_path):
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)

    def _listeners(self, stack: contextlib.AsyncExitStack) -> tuple[socket.socket, socket.socket]:
        """For gRPC and for ttrpc: what systemd handed over, else our own; only our own are removed at the end."""
        given: dict[str, socket.socket] = {}
        for name, listener in listen_sockets():
            stack.callback(listener.close)
            if given.setdefault(_TTRPC if name == _TTRPC else _GRPC, listener) is not listener:
                listener.close()  # nobody would accept
        return (
            given.get(_GRPC) or self._own_listener(stack, self.settings.socket),
            given.get(_TTRPC) or self._own_listener(stack, self.settings.ttrpc_path),
        )

    def _own_listener(self, stack: contextlib.AsyncExitStack, path: str) -> socket.socket:
        listener = sockets.listen(path)
        stack.callback(sockets.unlink, path)
        stack.callback(listener.close)
        return listener

    async def _keeper(self, stack: contextlib.AsyncExitStack) -> KeeperClient:
        await asyncio.to_thread(spawn_keeper, self.places.state)
        keeper = KeeperClient.connect(self.places.state)
        stack.callback(keeper.close)
        return keeper

    def _containerds(self, stack: contextlib.AsyncExitStack, lock: int) -> Containerds:
        async def listen(entrance: str) -> Sockets:
            origin, namespace = split_entrance(entrance)
            # A namespace may be longer than the path of a socket.
            name = hashlib.sha256(entrance.encode()).hexdigest()[:12]
            paths = Sockets(
                *(os.path.join(self.places.containerds, f"{name}{end}") for end in (".ttrpc.sock", ".sock"))
            )
            ttrpc, grpc = (self._own_listener(stack, path) for path in paths)
            await self._entrances.open(grpc, ttrpc, origin=origin, namespace=namespace)
            return paths

        containerds = Containerds(self.places.containerds, listen, lock)
        stack.push_async_callback(containerds.close)
        containerds.load()
        return containerds

    async def _build(
        self, stack: contextlib.AsyncExitStack, keeper: KeeperClient, containerds: Containerds
    ) -> tuple[Lifecycle, list[Service], EventBus]:
        settings = self.settings
        host = probe()
        os.makedirs(settings.runtime.seccomp_cache, 0o700, exist_ok=True)
        runtime = Runtime(
            host,
            KeeperLauncher(keeper),
            self.places.containers,
            seccomp_cache_dir=settings.runtime.seccomp_cache,
        )
        executor = ThreadPoolExecutor(settings.runtime.workers, "runtime")
        stack.callback(executor.shutdown)
        bus = EventBus(settings.events.keep)
        bus.listen(containerds.publish)
        announce = Announcer(bus)
        exits = Exits(keeper, lambda: self._keeper_lost(keeper, exits, lifecycle))
        stack.callback(exits.close)
        held = HeldStreams(keeper)
        lifecycle = Lifecycle(runtime, Registry(), announce, exits, held, executor, settings.runtime.drain_seconds)
        stack.callback(lifecycle.close)
        await recovery.load(lifecycle, held)
        exits.subscribe()
        control = Control(lifecycle, announce)
        task = TaskService(lifecycle, control)
        own = RuntimeService(lifecycle, control, bus, self._about(host, keeper.hello()))
        launcher = ContainerdsService(containerds, lifecycle)
        sandbox = SandboxService(lifecycle, control)
        implementations = (task, task, sandbox, own, launcher)
        return lifecycle, list(map(Service, _DESCRIPTORS, implementations)), bus

    def _keeper_lost(self, keeper: KeeperClient, exits: Exits, lifecycle: Lifecycle) -> None:
        """Containers live on without the keeper; a new one serves the next launches."""
        _log.error("the keeper is gone; starting another")
        self._replacement = asyncio.create_task(self._replace_keeper(keeper, exits, lifecycle))

    async def _replace_keeper(self, keeper: KeeperClient, exits: Exits, lifecycle: Lifecycle) -> None:
        recovery.watch_processes(lifecycle)
        keeper.close()
        while True:
            try:
                await asyncio.to_thread(spawn_keeper, self.places.state)
                exits.subscribe()
            except (ShimdError, OSError) as error:
                _log.error("starting a keeper failed: %s", error)
                await asyncio.sleep(_KEEPER_INTERVAL)
            else:
                return

    def _about(self, host: HostFacts, keeper_pid: int) -> About:
        version = runtime_pb2.VersionResponse(
            version=_version(),
            pid=os.getpid(),
            keeper_pid=keeper_pid,
            python=platform.python_version(),
            kernel=platform.release(),
            cgroup_mode=host.cgroup_mode,
            state_dir=self.places.state,
            services=[*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME],
        )
        version.started_at.FromNanoseconds(self.started_ns)
        return About(version, lambda: _features(host))

    def _settle_memory(self) -> None:
        """What is loaded now stays for ever: collections need not look at it again."""
        gc.collect()
        gc.freeze()

    async def _watchdog(self) -> None:
        interval = self.notifier.watchdog_interval
        while interval:
            self.notifier.send("WATCHDOG=1")
            await asyncio.sleep(interval)


def _features(host: HostFacts) -> runtime_pb2.FeaturesResponse:
    return runtime_pb2.FeaturesResponse(
        features=json.dumps(
            features(host, version=_version(), libseccomp=libseccomp_version(), mount_options=OPTION_NAMES)
        ).encode(),
        findings=[runtime_pb2.Finding(name=f.name, ok=f.ok, reason=f.reason, remedy=f.remedy) for f in doctor(host)],
    )


def _version() -> str:
    try:
        return metadata.version("shimd")
    except metadata.PackageNotFoundError:
        return "unknown"


def _stop_signal() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _resolve, stop)
    return stop


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """The descriptor. Raises FailedPrecondition when another daemon has the state directory; the lock goes with the
    process.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(fd, 32).decode(errors="replace").strip()
            raise FailedPrecondition(
                f"state directory {os.path.dirname(path)} is in use by another daemon (process {owner})",
                hint="stop that one, or give this one its own with --state",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("shimd", description="The container runtime daemon.")
    parser.add_argument("--socket", help="where clients connect (default: /run/shimd/shimd.sock)")
    parser.add_argument("--ttrpc-socket", help="where containerd connects (default: beside it, shimd.ttrpc.sock)")
    parser.add_argument("--state", help="state directory (default: /run/shimd)")
    parser.add_argument("--config", help=f"settings, TOML (default: {DEFAULT_CONFIG}, which may be missing)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", choices=("text", "json"))
    parser.add_argument("--version", action="version", version=f"shimd {_version()}")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    """What the command line says wins over the file."""
    settings = load_settings(arguments.config or DEFAULT_CONFIG, required=arguments.config is not None)
    log = replace(
        settings.log,
        level=arguments.log_level or settings.log.level,
        format=arguments.log_format or settings.log.format,
    )
    return replace(
        settings,
        socket=os.path.abspath(arguments.socket or settings.socket),
        ttrpc_socket=os.path.abspath(arguments.ttrpc_socket) if arguments.ttrpc_socket else settings.ttrpc_socket,
        state=os.path.abspath(arguments.state or settings.state),
        log=log,
    )


def main() -> None:
    """The console script ``shimd``."""
    notifier = Notifier()
    try:
        settings = _settings(_parser().parse_args())
        os.umask(0o022)  # hooks inherit it
        logs.configure(level=settings.log.level, style=settings.log.format)
        # A worker that computes must not keep the event loop from the interpreter for the default 5 ms.
        sys.setswitchinterval(0.0005)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Daemon(settings, notifier).run())
    except (ShimdError, OSError) as error:
        print(f"shimd: {error}", file=sys.stderr)
        if isinstance(error, ShimdError) and error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
