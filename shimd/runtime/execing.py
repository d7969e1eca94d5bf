"""``exec``: one more process in a container."""

from __future__ import annotations

import os
import time
from _socket import socket

from shimd.contexts import closing
from shimd.errors import NotFound, RuntimeFailure
from shimd.linux.process import pidfd_send_signal
from shimd.linux.signals import signal
from shimd.oci.model import Process
from shimd.oci.validate import validate_process
from shimd.plan import options as plan_options
from shimd.plan import wire
from shimd.plan.compile import compile_exec
from shimd.plan.ops import Plan
from shimd.runtime import agent, binding, notes, rdt
from shimd.runtime.control import derive_status, start_time
from shimd.runtime.dialogue import InitDied, Outcome, converse
from shimd.runtime.launch import Launched, LaunchRequest, is_dead
from shimd.runtime.model import Container, Environment, ExecOptions, ExecProcess, Phases, Stdio, launch_name
from shimd.runtime.process import (
    hook_state,
    send_pidfd,
    set_rlimits,
    was_oom_killed,
    write_maps,
)
from shimd.runtime.state import EXEC_EXIT_SUFFIX, check_id
from shimd.runtime.status import Operation, check
from shimd.runtime.undo import Undo


def exec_process(
    env: Environment, container: Container, exec_id: str, process: Process, stdio: Stdio, options: ExecOptions
) -> ExecProcess:
    """See Runtime.exec."""
    check_id("exec", exec_id)
    operation = Operation.EXEC_IGNORE_PAUSED if options.ignore_paused else Operation.EXEC
    check(operation, derive_status(container), container.id)
    with Undo(f"exec in container {container.id}") as undo:
        return _Execution(env, container, exec_id, process, stdio, options, undo).run()


class _Execution:
    """One exec. Methods run in the order in which they stand."""

    def __init__(
        self,
        env: Environment,
        container: Container,
        exec_id: str,
        process: Process,
        stdio: Stdio,
        options: ExecOptions,
        undo: Undo,
    ) -> None:
        self.env = env
        self.container = container
        self.id = exec_id
        self.name = launch_name(container.namespace, container.id, exec_id)
        self.process = process
        self.stdio = stdio
        self.options = options
        self.undo = undo
        self.phases = Phases()

    def run(self) -> ExecProcess:
        warnings = validate_process(self.process, self.env.host)
        with binding.Slots() as slots:
            self.plan = self.compile(slots)
            self.phases.mark("compile")
            control = self.bind(slots)
            with closing(control):
                self.launched = self.launch(slots)
                slots.close()
                if self.options.note:
                    self.prepare_note()
                outcome = self.talk(control)
        if self.options.note:
            notes.commit_exec(self.container, self.id)
        return ExecProcess(
            self.id,
            self.launched.pid,
            self.launched.pidfd,
            outcome.console,
            warnings + self.plan.warnings + outcome.warnings,
            self.phases.timings,
        )

    def compile(self, slots: binding.Slots) -> Plan:
        where = (self.container.pid, self.options.cgroup)
        slots.add_cgroup_fd(self.container.cgroup.exec_cgroup_fd(*where))
        self.cgroup_entry = self.container.cgroup.exec_entry(*where)
        options = plan_options.ExecOptions(
            id=self.container.id,
            cgroup_slots=slots.add_cgroups(self.container.cgroup.exec_procs(*where)),
            cgroup_entry=self.cgroup_entry is not None,
            rdt_slots=slots.add_rdt(rdt.open_tasks(rdt.group_of(self.container.state))),
            no_new_keyring=not self.container.state.keyring,
            keyring=self.container.state.keyring,
            preserve_fds=len(self.options.preserve_fds),
            seccomp_cache=self.env.seccomp_cache,
        )
        return compile_exec(self.process, self.container.spec, self.env.host, options)

    def bind(self, slots: binding.Slots) -> socket:
        slots.lend("init", self.container.live_pidfd())
        slots.add_process(self.stdio, self.options, terminal=self.process.terminal)
        return slots.add_control()

    def launch(self, slots: binding.Slots) -> Launched:
        request = LaunchRequest(
            name=self.name,
            clone=self.plan.clone,
            stage=wire.dumps(self.plan.stage) if self.plan.stage else b"",
            steps=wire.dumps(self.plan.steps),
            fds=slots.bound(),
            hold=self.options.hold,
            exit_file=os.path.join(self.container.directory.path, self.id + EXEC_EXIT_SUFFIX),
            cgroup_fd=slots.cgroup_fd,
        )
        self.phases.mark("bind")
        try:
            launched = self.env.launcher.launch(request)
        except RuntimeFailure:
            if not self.follow_init(slots):
                raise
            launched = self.env.launcher.launch(request._replace(cgroup_fd=slots.cgroup_fd))
        self.undo.push("remove the exit record", lambda: self.container.directory.unlink(self.id + EXEC_EXIT_SUFFIX))
        self.undo.push("close the pidfd", lambda: os.close(launched.pidfd))
        self.undo.push("kill the process", lambda: self.env.launcher.discard(self.name, launched))
        self.phases.mark("launch")
        return launched

    def follow_init(self, slots: binding.Slots) -> bool:
        """Whether init has left, since we looked, the cgroup that the process could not be born in."""
        if slots.cgroup_fd < 0:
            return False
        tried = os.fstat(slots.cgroup_fd).st_ino
        slots.add_cgroup_fd(self.container.cgroup.exec_cgroup_fd(self.container.pid, self.options.cgroup))
        return os.fstat(slots.cgroup_fd).st_ino != tried

    def prepare_note(self) -> None:
        pid = self.launched.pid
        note = notes.ExecNote(self.id, pid, start_time(pid), time.time_ns(), self.process.terminal, self.stdio.paths)
        self.undo.push("remove the note", lambda: notes.discard_exec(self.container, self.id))
        notes.prepare_exec(self.container, note)

    def talk(self, control: socket) -> Outcome:
        try:
            raw_newlines = self.options.raw_newlines
            outcome = converse(
                control,
                self.launched.pidfd,
                self.on_sync,
                gate=False,
                on_listener=self.on_listener,
                raw_newlines=raw_newlines,
            )
        except InitDied as error:
            if was_oom_killed(self.container.cgroup):
                raise RuntimeFailure(f"{error} (possibly OOM-killed)") from error
            raise
        self.phases.mark("executed")
        return outcome

    def on_listener(self, number: int, fd: int) -> None:
        of = self.container
        state = hook_state(of.id, "running", of.pid, of.bundle, of.state.annotations)
        agent.hand_over(of.spec.linux.seccomp, self.launched, number, fd, state)

    def on_sync(self, point: str) -> None:
        self.phases.mark(f"until {point}")
        if point == "cgroup":
            assert self.cgroup_entry is not None
            self.cgroup_entry(self.launched.pid)
        elif point == "maps":
            write_maps(self.launched, self.plan)
        elif point == "ready":
            set_rlimits(self.launched.pid, self.plan.rlimits)
            send_pidfd(self.options.pidfd_socket, self.launched, b"setns")
        self.phases.mark(point)


def is_running(process: ExecProcess) -> bool:
    return process.pidfd >= 0 and not is_dead(process.pidfd)


def kill_exec(container: Container, process: ExecProcess, number: int) -> None:
    """See Runtime.kill_exec."""
    try:
        if process.pidfd < 0:
            raise ProcessLookupError
        pidfd_send_signal(process.pidfd, number)
    except ProcessLookupError as error:
        raise NotFound(f"process {process.id} not running") from error
    if number == signal.SIGKILL:
        container.cgroup.wake_killed()


def delete_exec(env: Environment, container: Container, process: ExecProcess) -> None:
    """See Runtime.delete_exec."""
    env.launcher.forget(launch_name(container.namespace, container.id, process.id))
    container.directory.unlink(process.id + EXEC_EXIT_SUFFIX)
    notes.remove(container, process.id)
    if process.pidfd >= 0:
        os.close(process.pidfd)
