"""A container from a bundle, as ``create`` and ``run`` make one: in the background with the streams that we have, or in
the foreground.
"""

from __future__ import annotations

import os

from shimd.cli.command import Call, flag, number, text
from shimd.cli.handover import Handover
from shimd.cli.phases import CREATE, log_filter, log_phases, log_protection
from shimd.contexts import closing
from shimd.errors import ShimdError
from shimd.runtime.bundle import read_config
from shimd.runtime.model import Container, CreateOptions, Stdio
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.cli.foreground import Foreground

OPTIONS = (
    text("bundle", "path to the bundle directory (default: the current directory)", "b"),
    text("console-socket", "path to a unix socket that is sent the master end of the container's terminal"),
    text("pidfd-socket", "path to a unix socket that is sent a pidfd of the container's init process"),
    text("pid-file", "the file to write the process id to"),
    flag("no-pivot", "do not use pivot_root; for a root file system on a ramdisk"),
    flag("no-new-keyring", "leave the container with the session keyring of the caller"),
    number("preserve-fds", "pass N additional descriptors to the container (stdio + $LISTEN_FDS + N in total)"),
)


class Making:
    """What the command line and the bundle say about a container that does not exist yet."""

    def __init__(self, call: Call, *, detach: bool) -> None:
        """Raises InvalidArgument, InvalidSpec, OSError."""
        self._call = call
        self._runtime = call.runtime()
        self._id = call.container_id
        self._bundle = os.path.abspath(call.text("bundle") or ".")
        self._config = read_config(self._bundle, self._runtime.env.host)
        self._manager = os.environ.get("NOTIFY_SOCKET", "")
        self.terminal = self._config.spec.process.terminal
        self._handover = Handover(call, terminal=self.terminal, detach=detach, activation=True)

    def __enter__(self) -> Making:
        return self

    def __exit__(self, *exc: object) -> None:
        self._handover.__exit__()

    def detached(self, *, start: bool) -> None:
        """A container that outlives us, created or with its program running."""
        with self._create(Stdio(0, 1, 2), gate=not start) as container:
            try:
                self._handover.write_pid(container.pid)
                if start and self._manager:
                    self._start_and_wait(container)
            except BaseException as error:
                self._abandon(container, error)
                raise

    def foreground(self, *, keep: bool) -> int:
        """The whole life of a container; the exit code of its program."""
        from shimd.cli.foreground import Foreground

        with Foreground(terminal=self.terminal) as foreground:
            with self._create(foreground.stdio, gate=False, console_size=foreground.console_size) as container:
                try:
                    self._handover.write_pid(container.pid)
                    code = self._follow(foreground, container)
                except BaseException as error:
                    self._abandon(container, error)
                    raise
                if not keep:
                    self._delete(container)
                return code

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _create(self, stdio: Stdio, *, gate: bool, console_size: tuple[int, int] | None = None) -> Container:
        """With a service manager to be notified the container waits, too: its end of the socket comes first."""
        call, handover = self._call, self._handover
        call.messages.debug(f"create container {self._id} from {self._bundle}, state in {call.settings.root}")
        options = CreateOptions(
            gate=gate or bool(self._manager),
            systemd_cgroup=call.settings.systemd_cgroup,
            no_pivot=call.flag("no-pivot"),
            no_new_keyring=call.flag("no-new-keyring"),
            console_socket=handover.console_socket,
            pidfd_socket=handover.pidfd_socket,
            preserve_fds=handover.fds,
            env=handover.env,
            notify=bool(self._manager),
            console_size=console_size,
            raw_newlines=console_size is not None,
        )
        container = self._runtime.create(self._id, self._bundle, config=self._config.data, stdio=stdio, options=options)
        for warning in container.warnings:
            call.messages.warn(warning)
        log_protection(call.messages, call.settings.program, call.protection)
        log_filter(call.messages, self._config.spec.linux.seccomp, self._runtime.env.host)
        log_phases(call.messages, container.timings, CREATE)
        return container

    def _start_and_wait(self, container: Container) -> None:
        from shimd.cli.notify import Notify

        with closing(Notify(container, self._manager, self._call.messages)) as notify:
            self._runtime.start(container)
            notify.wait(container.pid, container.pidfd)

    def _follow(self, foreground: Foreground, container: Container) -> int:
        console = container.take_console()
        if not self._manager:
            return foreground.follow(container.pid, container.pidfd, console)
        from shimd.cli.notify import Notify

        with closing(Notify(container, self._manager, self._call.messages)) as notify:
            self._runtime.start(container)
            return foreground.follow(container.pid, container.pidfd, console, notify)

    def _abandon(self, container: Container, error: BaseException) -> None:
        """What is wrong with that must not hide why."""
        try:
            self._runtime.delete(container, force=True)
        except (ShimdError, OSError) as problem:
            error.add_note(f"failed to delete container {self._id}: {problem}")

    def _delete(self, container: Container) -> None:
        """What is wrong with that changes nothing about the program's exit code."""
        try:
            for problem in self._runtime.delete(container):
                self._call.messages.warn(problem)
        except (ShimdError, OSError) as error:
            self._call.messages.warn(str(error))
