"""``start``: open the gate at which a created container's init waits."""

from __future__ import annotations

from shimd.errors import FailedPrecondition, RuntimeFailure, ShimdError
from shimd.init import handshake
from shimd.init.request import Launched
from shimd.linux.signals import signal
from shimd.plan.rootfs import hook_specs
from shimd.runtime import agent
from shimd.runtime.control import derive_status, is_alive, kill
from shimd.runtime.dialogue import InitFailed
from shimd.runtime.hooks import run_hooks
from shimd.runtime.model import Container, Phases
from shimd.runtime.process import hook_state
from shimd.runtime.state import START_SOCKET
from shimd.runtime.status import Operation, Status, check, refusal


def start(container: Container) -> None:
    """See Runtime.start."""
    check(Operation.START, derive_status(container), container.id)
    phases = Phases(container.timings)
    _open_gate(container)
    phases.mark("start")
    if container.spec.hooks.poststart:
        _run_poststart(container)
        phases.mark("poststart hooks")


def _open_gate(container: Container) -> None:
    directory = container.directory

    def on_listener(number: int, fd: int) -> None:
        state = hook_state(container.id, "created", container.pid, container.bundle, container.state.annotations)
        init = Launched(container.pid, container.live_pidfd())
        agent.hand_over(container.spec.linux.seccomp, init, number, fd, state)

    try:
        failure = handshake.start(f"/proc/self/fd/{directory.fd}/{START_SOCKET}", on_listener)
    except handshake.NotStarted as error:
        # Init has died since we looked, or another start was quicker. That one may have died before it took the socket
        # away, which says that the container is created.
        status = Status.STOPPED
        if is_alive(container):
            status = Status.RUNNING
            directory.unlink(START_SOCKET)
        raise FailedPrecondition(refusal(Operation.START, status, container.id)) from error
    except handshake.ProtocolError as error:
        raise RuntimeFailure(f"start container {container.id}: {error}") from error
    except RuntimeFailure:  # of the agent: init has ended, as nobody waits for it any more
        directory.unlink(START_SOCKET)
        raise
    directory.unlink(START_SOCKET)
    if failure is not None:
        raise InitFailed(failure)


def _run_poststart(container: Container) -> None:
    """A hook that fails ends the container."""
    state = hook_state(container.id, "running", container.pid, container.bundle, container.state.annotations)
    try:
        run_hooks("poststart", hook_specs(container.spec.hooks.poststart), state, cwd=container.bundle)
    except ShimdError:
        kill(container, signal.SIGKILL, everyone=True)
        raise
