"""The runtime: all that can be done with containers, without a daemon and without asyncio.

Thread-safe for different containers; operations on one container are serialised by the caller. Everything raises
``ShimdError``; nothing that failed leaves anything behind, unless a note of the error says so.
"""

from __future__ import annotations

import os

from shimd.cgroups.manager import from_state
from shimd.errors import FailedPrecondition, NotFound, RuntimeFailure, ShimdError
from shimd.linux.process import pidfd_open
from shimd.records import Record
from shimd.runtime import control
from shimd.runtime.model import (
    DEFAULT_CREATE,
    DEFAULT_EXEC,
    NO_STDIO,
    Container,
    CreateOptions,
    Environment,
    ExecOptions,
    ExecProcess,
    Stdio,
    launch_name,
)
from shimd.runtime.state import MAKING_FILE, SANDBOX_ANNOTATION, START_SOCKET, StateDir, check_id, is_id
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.cgroups.stats import Stats
    from shimd.host.facts import HostFacts
    from shimd.oci.model import Process, Resources
    from shimd.plan.ops import Plan
    from shimd.runtime import notes
    from shimd.runtime.bundle import Config
    from shimd.runtime.launch import Launcher
    from shimd.runtime.status import Status

__all__ = ["Container", "CreateOptions", "ExecOptions", "ExecProcess", "Listing", "Runtime", "Stdio"]


Pids = list[int]  # Runtime.list hides the builtin


_LAST_BREATH = 0.5  # seconds


class Listing(Record):
    """Loaded containers, which the caller closes; what was wrong with those that could not be loaded; the ids of
    directories that are for ``remove_stray``.
    """

    containers: tuple[Container, ...]
    problems: tuple[str, ...]
    strays: tuple[str, ...]


class Runtime:
    """``state_root`` holds <namespace>/<id>, or <id> for the namespace ""."""

    def __init__(self, host: HostFacts, launcher: Launcher, state_root: str, *, seccomp_cache_dir: str = "") -> None:
        self.env = Environment(host, launcher, state_root, seccomp_cache_dir)

    # ---- making ----------------------------------------------------------------------------------------------------

    def create(
        self,
        container_id: str,
        bundle: str,
        *,
        namespace: str = "",
        config: bytes | None = None,
        stdio: Stdio = NO_STDIO,
        options: CreateOptions = DEFAULT_CREATE,
    ) -> Container:
        """A container whose init waits for ``start``, or whose program runs (``options.gate`` False). ``config`` are
        the bytes of config.json when the bundle's is not meant.

        AlreadyExists comes before any side effect; InvalidSpec, InvalidArgument before there is a process.
        """
        from shimd.runtime import creating

        return creating.create(self.env, namespace, container_id, bundle, config=config, stdio=stdio, options=options)

    def in_pod(self, namespace: str, config: Config) -> Config:
        """The configuration with the files of the sandbox that it names, if we have that one."""
        from shimd.runtime import pod
        from shimd.runtime.bundle import read_config

        sandbox = config.spec.annotations.get(SANDBOX_ANNOTATION, "")
        if not is_id(sandbox):
            return config
        data = pod.amended(config.data, config.spec, self.state_directory(namespace, sandbox))
        return config if data is config.data else read_config("/", self.env.host, data)

    def state_directory(self, namespace: str, container_id: str) -> str:
        """Of a container, there or not."""
        return os.path.join(self.env.state_root, namespace, container_id)

    def start(self, container: Container) -> None:
        """Let the program run: it does when this returns. A poststart hook that fails kills the container."""
        from shimd.runtime import starting

        starting.start(container)

    def exec(
        self,
        container: Container,
        exec_id: str,
        process: Process,
        *,
        stdio: Stdio = NO_STDIO,
        options: ExecOptions = DEFAULT_EXEC,
    ) -> ExecProcess:
        """Run one more process in the container."""
        from shimd.runtime import execing

        return execing.exec_process(self.env, container, exec_id, process, stdio, options)

    def kill_exec(self, container: Container, process: ExecProcess, signal: int) -> None:
        """Signal a process that ``exec`` made; NotFound when it is dead."""
        from shimd.runtime import execing

        execing.kill_exec(container, process, signal)

    def delete_exec(self, container: Container, process: ExecProcess) -> None:
        """Forget a dead process and close its pidfd."""
        from shimd.runtime import execing

        execing.delete_exec(self.env, container, process)

    def find_execs(self, container: Container) -> tuple[tuple[notes.ExecNote, ExecProcess], ...]:
        """Those that were noted (see ExecOptions). Raises RuntimeFailure for a damaged note."""
        from shimd.runtime import notes

        try:
            found = notes.execs(container)
        except ValueError as error:
            raise RuntimeFailure(f"read {container.directory.path}: {error}") from error
        return tuple(
            (note, ExecProcess(note.id, note.pid, _open_process(note.pid, note.start_time), -1, (), {}))
            for note in found
        )

    def delete(self, container: Container, *, force: bool = False) -> tuple[str, ...]:
        """Remove a container that is stopped or was not started, or with ``force`` any; closes it. Returns what its
        poststop hooks complained of, which changes nothing.
        """
        from shimd.runtime import deleting

        return deleting.delete(self.env, container, force=force)

    # ---- planning --------------------------------------------------------------------------------------------------

    def plan(
        self, container_id: str, bundle: str, *, config: bytes | None = None, options: CreateOptions = DEFAULT_CREATE
    ) -> Plan:
        """What ``create`` would have init do; raises what it raises for the configuration."""
        from shimd.runtime import planning

        return planning.plan_create(self.env, container_id, bundle, config, options)

    def plan_exec(self, container: Container, process: Process) -> Plan:
        from shimd.runtime import planning

        return planning.plan_exec(self.env, container, process)

    # ---- finding ---------------------------------------------------------------------------------------------------

    def load(self, container_id: str, *, namespace: str = "") -> Container:
        """A container that somebody else made, or we in a former life. NotFound; RuntimeFailure for a damaged state
        file.
        """
        check_id("container", container_id)
        directory = StateDir.open(self.env.state_root, namespace, container_id)
        try:
            state = directory.load()
            if state.id != container_id:
                raise RuntimeFailure(f"{directory.path} holds the state of container {state.id}")
            # By its place: a command line knows of no namespaces, and its root may be one of the daemon's.
            state = state._replace(namespace=namespace)
            cgroup = from_state(self.env.host, state.cgroup)
            return Container(state, directory, cgroup, _open_process(state.pid, state.start_time))
        except BaseException:
            directory.close()
            raise

    def list(self, *, namespace: str = "") -> Listing:
        """All containers of a namespace, in the order of their ids."""
        root = os.path.join(self.env.state_root, namespace)
        containers, problems, strays = [], [], []
        for name in sorted(_subdirectories(root)):
            try:
                containers.append(self.load(name, namespace=namespace))
            except NotFound:
                if self._has_stray(name, namespace):
                    strays.append(name)
            except ShimdError as error:
                problems.append(str(error))
        return Listing(tuple(containers), tuple(problems), tuple(strays))

    def _has_stray(self, container_id: str, namespace: str) -> bool:
        """Not so for a container that is being made, or was removed in this moment."""
        try:
            with StateDir.open(self.env.state_root, namespace, container_id) as directory:
                return not directory.is_being_made() and _is_stray(directory)
        except NotFound:
            return False

    def ids(self, *, namespace: str = "") -> tuple[str, ...]:
        """Of what ``load`` may find, in order."""
        return tuple(sorted(_subdirectories(os.path.join(self.env.state_root, namespace))))

    def namespaces(self) -> tuple[str, ...]:
        return tuple(sorted(_subdirectories(self.env.state_root)))

    def is_made(self, container: Container) -> bool:
        """False when its creator was killed at the very end of the create, and init ended by that: nobody can have
        started it.
        """
        directory = container.directory
        if not directory.exists(MAKING_FILE) or directory.is_being_made():
            return True
        if directory.exists(START_SOCKET):
            from shimd.runtime.launch import wait_dead

            # One that has not been let go to the gate yet is about to notice that its creator is dead.
            if not control.is_alive(container) or wait_dead(container.pidfd, _LAST_BREATH):
                return False
        directory.unlink(MAKING_FILE)
        return True

    def remove_stray(self, container_id: str, *, namespace: str = "") -> None:
        """Remove what a creator that was killed has left: a state directory without a usable state file, and what it
        had made by then. NotFound when there is none, FailedPrecondition when it is that of a container.
        """
        check_id("container", container_id)
        with StateDir.open(self.env.state_root, namespace, container_id) as directory:
            if directory.is_being_made():
                raise FailedPrecondition(f"container {container_id} is still being created")
            if not _is_stray(directory):
                raise FailedPrecondition(f"container {container_id} exists")
            from shimd.runtime import deleting

            deleting.remove_remains(self.env, directory, launch_name(namespace, container_id))

    # ---- controlling -----------------------------------------------------------------------------------------------

    def status(self, container: Container) -> Status:
        return control.derive_status(container)

    def state_document(self, container: Container) -> dict[str, Any]:
        """The state in the form of the specification."""
        return control.state_document(container)

    def kill(self, container: Container, signal: int, *, everyone: bool = False) -> None:
        """Signal init, or ``everyone`` in the container. NotFound when init is dead."""
        control.kill(container, signal, everyone=everyone)

    def pause(self, container: Container) -> None:
        control.pause(container)

    def resume(self, container: Container) -> None:
        control.resume(container)

    def update(self, container: Container, change: Resources) -> tuple[str, ...]:
        """Change limits; returns warnings."""
        return control.update(self.env, container, change)

    def update_rdt(self, container: Container, *, l3_cache_schema: str = "", mem_bw_schema: str = "") -> None:
        """Change the container's class of Intel RDT; one that has none gets one. Raises FailedPrecondition where the
        machine has no such thing, RuntimeFailure.
        """
        from shimd.runtime import rdt

        rdt.update(container, l3_cache_schema=l3_cache_schema, mem_bw_schema=mem_bw_schema)

    def pod_stats(self, container: Container) -> Stats:
        """Of the cgroup that a sandbox and the containers of its pod have in common, if they do."""
        return control.pod_stats(self.env, container)

    def stats(self, container: Container) -> Stats:
        return control.stats(container)

    def pids(self, container: Container) -> Pids:
        """Of all processes, execs included; empty when stopped."""
        return control.pids(container)


def _open_process(pid: int, start_time: int) -> int:
    """A pidfd, or -1. The number may have gone to another process between any two steps, so it is checked after the
    opening, too.
    """
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return -1
    if control.is_same_process(pid, start_time):
        return pidfd
    os.close(pidfd)
    return -1


def _is_stray(directory: StateDir) -> bool:
    try:
        directory.load()
    except (NotFound, RuntimeFailure):
        return True
    return False


def _subdirectories(path: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
