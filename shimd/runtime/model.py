"""What the runtime is asked for and what it gives back."""

from __future__ import annotations

import os
import time

from shimd import jsontext
from shimd.errors import FailedPrecondition, RuntimeFailure
from shimd.records import Record
from shimd.runtime.state import CONFIG_FILE, ContainerState, StateDir
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimd.cgroups.manager import CgroupManager
    from shimd.host.facts import HostFacts
    from shimd.oci.model import Resources, Spec
    from shimd.runtime.launch import Launcher
    from shimd.runtime.pod import PodFiles
    from shimd.runtime.rootfs import RootfsMount


class Environment(Record):
    """What every operation is done with. ``state_root`` holds <namespace>/<id>; ``seccomp_cache`` is a directory for
    compiled filters, "" for none.
    """

    host: HostFacts
    launcher: Launcher
    state_root: str
    seccomp_cache: str = ""


class Stdio(Record):
    """Descriptors that the process gets as 0, 1 and 2 when it has no terminal, -1 for /dev/null; they stay the
    caller's. ``paths`` are only written down in the state.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    paths: tuple[str, str, str] = ("", "", "")


NO_STDIO = Stdio()


class CreateOptions(Record):
    """``gate``: wait for ``start``; without, the program runs when ``create`` returns. ``console_socket``: a
    connected unix stream socket that gets the pty's master instead of the caller. ``preserve_fds`` become descriptors
    3 and up. ``rootfs``: mounts of the request. ``hold``: descriptors that the keeper keeps, by name, from the launch
    on. ``service``: see ContainerState. ``systemd_cgroup``: systemd makes the cgroup, as a unit, and
    ``linux.cgroupsPath`` is ``slice:prefix:name`` (``shimrun --systemd-cgroup``), None: if the path has that form and a
    slice; what is done with the container later needs no word of that. ``pod``: the container holds the namespaces of
    one, and these files; its configuration is of ``pod.config``. Descriptors stay the caller's.

    For a command line: ``pidfd_socket``, a connected unix socket that gets a pidfd of init; ``env``, put behind the
    configured environment; ``notify``, a directory in the state directory that the container sees as /run/notify, for
    the socket of ``sd_notify``; ``console_size`` (rows, columns) in place of the configured one; ``raw_newlines``, the
    pty leaves newlines as they are, since the terminal that shows the output makes carriage returns of its own.
    """

    gate: bool = True
    systemd_cgroup: bool | None = False
    no_pivot: bool = False
    no_new_keyring: bool = False
    console_socket: int = -1
    preserve_fds: tuple[int, ...] = ()
    rootfs: tuple[RootfsMount, ...] = ()
    hold: tuple[tuple[str, int], ...] = ()
    service: Mapping[str, str | int] = {}
    pod: PodFiles | None = None
    pidfd_socket: int = -1
    env: tuple[str, ...] = ()
    notify: bool = False
    console_size: tuple[int, int] | None = None
    raw_newlines: bool = False


DEFAULT_CREATE = CreateOptions()


class ExecOptions(Record):
    """``cgroup`` are sub-cgroups of the container's, see CgroupManager.exec_cgroup_fd; ``note``: write down that there
    is this exec, see ``notes``; the rest as in CreateOptions.
    """

    console_socket: int = -1
    preserve_fds: tuple[int, ...] = ()
    hold: tuple[tuple[str, int], ...] = ()
    ignore_paused: bool = False
    cgroup: Mapping[str, str] = {}
    pidfd_socket: int = -1
    raw_newlines: bool = False
    note: bool = False


DEFAULT_EXEC = ExecOptions()


class ExecProcess(Record):
    """A process that was added to a container; ``console_fd`` is -1 without a terminal, ``pidfd`` when it was dead on
    finding it. Descriptors are the caller's to close.
    """

    id: str
    pid: int
    pidfd: int
    console_fd: int
    warnings: tuple[str, ...]
    timings: dict[str, float]


class Phases:
    """Milliseconds by phase, in order: each ``mark`` ends the phase that it names."""

    def __init__(self, timings: dict[str, float] | None = None) -> None:
        self.timings: dict[str, float] = {} if timings is None else timings
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self.timings[phase] = self.timings.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now


class Container:
    """A container that exists in the state directory. Owns ``directory``, ``pidfd`` (-1 when init was dead on
    loading) and ``console_fd`` (-1 without a terminal, or after ``take_console``). Operations on one container are
    serialised by the caller.
    """

    def __init__(
        self,
        state: ContainerState,
        directory: StateDir,
        cgroup: CgroupManager,
        pidfd: int,
        *,
        spec: Spec | None = None,
        console_fd: int = -1,
        timings: dict[str, float] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.state = state
        self.directory = directory
        self.cgroup = cgroup
        self.pidfd = pidfd
        self.console_fd = console_fd
        self.timings = {} if timings is None else timings
        self.warnings = warnings
        self._spec = spec

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def namespace(self) -> str:
        return self.state.namespace

    @property
    def bundle(self) -> str:
        return self.state.bundle

    @property
    def pid(self) -> int:
        return self.state.pid

    @property
    def spec(self) -> Spec:
        """The configuration that the container was made with, whatever the bundle says by now."""
        if self._spec is None:
            from shimd.oci.read import read_spec_cached  # with all its tables

            self._spec = read_spec_cached(self.config_bytes())
        return self._spec

    def config_bytes(self) -> bytes:
        """config.json as it was given."""
        from shimd.oci.read import MAX_BYTES

        try:
            return self.directory.read(CONFIG_FILE, MAX_BYTES)
        except FileNotFoundError as error:
            raise RuntimeFailure(f"read {self.directory.path}/{CONFIG_FILE}: {error.strerror}") from error

    @property
    def resources(self) -> Resources:
        """The limits in force: the configuration's, or those of the last update."""
        changed = self.state.changed_resources
        if not changed:
            return self.spec.linux.resources
        from shimd.oci.read import read_resources

        return read_resources(jsontext.dumps(changed).encode())

    def take_console(self) -> int:
        """Hand the pty's master over to the caller; -1 when there is none."""
        fd, self.console_fd = self.console_fd, -1
        return fd

    def live_pidfd(self) -> int:
        """The pidfd; raises FailedPrecondition when init is known to be dead."""
        if self.pidfd < 0:
            raise FailedPrecondition("container not running")
        return self.pidfd

    def close(self) -> None:
        """Give up the descriptors; the container itself lives on. Idempotent."""
        self.directory.close()
        self.cgroup.close()
        pidfd, self.pidfd = self.pidfd, -1
        for fd in (pidfd, self.take_console()):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def unique_name(namespace: str, container_id: str) -> str:
    """For directories that all namespaces share: equal ids in two of them are two containers. "@" is in no id, so no
    two names meet.
    """
    return f"{namespace}@{container_id}" if namespace else container_id


def launch_name(namespace: str, container_id: str, exec_id: str = "") -> str:
    """The name of a process at the launcher: unique among living ones, and what its exit is reported under."""
    return "/".join(filter(None, (namespace, container_id, exec_id)))
