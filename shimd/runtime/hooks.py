"""The hooks that run in the runtime's own namespaces: prestart, createRuntime, poststart, poststop.

A hook gets the state document on stdin, exactly the environment of its configuration, and the bundle as working
directory. Its output is read while it runs, bounded, and shown when it fails. What a hook leaves running does not
delay us: the end of the hook is the end of its process, not of its output.
"""

from __future__ import annotations

import os
import select
import time

from shimd.errors import RuntimeFailure
from shimd.linux import memfd
from shimd.linux.signals import signal
from shimd.plan.ops import HookSpec
from shimd.runtime.interrupts import held_back
from shimd.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    import subprocess

_MAX_OUTPUT = 16 << 10


def run_hooks(kind: str, hooks: Sequence[HookSpec], state: bytes, *, cwd: str) -> None:
    """Run ``hooks`` in order with ``state`` on stdin; raises RuntimeFailure at the first that fails."""
    for index, hook in enumerate(hooks):
        error = _run_hook(hook, state, cwd)
        if error:
            raise RuntimeFailure(f"error running {kind} hook #{index}: {error}")


def run_hooks_through(kind: str, hooks: Sequence[HookSpec], state: bytes, *, cwd: str) -> list[str]:
    """Run all ``hooks`` whatever happens (poststop); returns the texts of the failures."""
    errors = ((index, _run_hook(hook, state, cwd)) for index, hook in enumerate(hooks))
    return [f"error running {kind} hook #{index}: {error}" for index, error in errors if error]


def _run_hook(hook: HookSpec, state: bytes, cwd: str) -> str:
    """Run one hook; returns what went wrong, or ""."""
    # A memory file cannot block or break as a pipe does, whatever the hook reads of it.
    stdin = memfd.sealed("hook-state", state)
    process = None
    try:
        with held_back():
            process = _spawn(hook, stdin, cwd)
        finished, stdout, stderr = _attend(process, hook.timeout)
    except (OSError, ValueError) as error:
        if process is not None:
            raise
        return f"{hook.path}: {error.strerror if isinstance(error, OSError) else error}"
    finally:
        os.close(stdin)
        if process is not None:
            with process:
                _kill_group(process)  # somebody wants an end, or it has come already
    if not finished:
        return f"{hook.path}: timed out after {hook.timeout} s{_output(stdout, stderr)}"
    if process.returncode < 0:
        return f"{hook.path}: signal: {_signal_name(-process.returncode)}{_output(stdout, stderr)}"
    if process.returncode > 0:
        return f"{hook.path}: exit status {process.returncode}{_output(stdout, stderr)}"
    return ""


def _spawn(hook: HookSpec, stdin: int, cwd: str) -> subprocess.Popen[bytes]:
    # Most containers have no hooks, and the import costs more than the rest of this module: hence here.
    import subprocess

    return subprocess.Popen(
        list(hook.args) or [hook.path],
        executable=hook.path,
        env=dict(entry.partition("=")[::2] for entry in hook.env),
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )


def _attend(process: subprocess.Popen[bytes], timeout: int) -> tuple[bool, bytes, bytes]:
    """Read the output until the process ends or ``timeout`` seconds (0: for ever) pass, when its group is killed."""
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    deadline = time.monotonic() + timeout if timeout > 0 else None
    pidfd = os.pidfd_open(process.pid)
    try:
        finished = _pump(pidfd, dict(outputs), deadline)
    finally:
        os.close(pidfd)
    if not finished:
        _kill_group(process)
    process.wait()
    stdout, stderr = outputs.values()
    return finished, bytes(stdout), bytes(stderr)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _pump(pidfd: int, outputs: dict[int, bytearray], deadline: float | None) -> bool:
    """Collect into ``outputs`` until the process has ended and what it wrote is read; False when ``deadline`` passed
    first.
    """
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    for fd in outputs:
        os.set_blocking(fd, False)
        poller.register(fd, select.POLLIN)
    while True:
        remaining = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        ready = [fd for fd, _ in poller.poll(remaining)]
        if not ready:
            return False
        for fd in ready:
            if fd != pidfd and not _collect(fd, outputs[fd]):
                poller.unregister(fd)
        if pidfd in ready:
            for fd, buffer in outputs.items():
                while len(buffer) < _MAX_OUTPUT and _collect(fd, buffer, only_if_ready=True):
                    pass
            return True


def _collect(fd: int, buffer: bytearray, *, only_if_ready: bool = False) -> bool:
    """Read once into ``buffer``, which takes no more than _MAX_OUTPUT bytes; False at the end of file."""
    try:
        data = os.read(fd, 64 << 10)
    except BlockingIOError:
        return not only_if_ready
    buffer += data[: _MAX_OUTPUT - len(buffer)]
    return bool(data)


def _output(stdout: bytes, stderr: bytes) -> str:
    return f", stdout: {_text(stdout)}, stderr: {_text(stderr)}"


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()


def _signal_name(number: int) -> str:
    from signal import Signals  # a set of names that only this needs

    try:
        return Signals(number).name
    except ValueError:
        return str(number)
