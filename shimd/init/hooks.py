"""createContainer and startContainer hooks: programs that init itself runs, with the state document on their standard
input.
"""

from __future__ import annotations

import os
import select
import time
from errno import EPIPE

from shimd.init.context import Context, StepFailed
from shimd.linux import process
from shimd.linux.signals import signal
from shimd.plan import ops
from shimd.typed import NoReturn

MAX_OUTPUT = 8 * 1024  # of what a hook prints, as much as its error text carries
_CHUNK = 64 * 1024
_NOT_EXECUTED = 127


def run_hooks(ctx: Context, op: ops.RunHooks) -> None:
    state = str(os.getpid()).join(op.state)
    # What the program is started with; empty before that is known.
    inherited = tuple([f"{name}={value}" for name, value in ctx.env.items()])
    if op.kind == "createContainer":
        os.fchdir(ctx.root)  # as runc has it; a hook that works on the rootfs need not parse the bundle for it
    for index, hook in enumerate(op.hooks):
        problem = run_hook(hook if hook.env else hook._replace(env=inherited), state.encode())
        if problem:
            raise StepFailed("", 0, f"error running {op.kind} hook #{index}: {problem}")


def run_hook(hook: ops.HookSpec, state: bytes) -> str:
    """What went wrong, with what the hook printed; "" on success."""
    stdin, stdin_parent = os.pipe2(os.O_CLOEXEC)
    output_parent, output = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = process.clone3(0)
    if pid == 0:
        _execute(hook, stdin, output)
    os.close(stdin)
    os.close(output)
    exchange = _Exchange(stdin_parent, output_parent, state)
    try:
        in_time = exchange.run(pidfd, hook.timeout)
        if not in_time:
            process.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        exchange.close()
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    return _problem(hook, status, exchange.output, in_time=in_time)


def _execute(hook: ops.HookSpec, stdin: int, output: int) -> NoReturn:
    """In the child. The exit status tells of a failed execve, its reason goes where the hook's own output goes."""
    try:
        process.reset_signals()
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        process.close_range(3, process.MAX_FD, process.CLOSE_RANGE_CLOEXEC)
        environment = dict(entry.split("=", 1) for entry in hook.env)
        os.execve(hook.path, hook.args or (hook.path,), environment)
    except OSError as e:
        os.write(2, f"exec {hook.path}: {e.strerror}".encode())
    finally:
        os._exit(_NOT_EXECUTED)


def _problem(hook: ops.HookSpec, status: int, output: bytes, *, in_time: bool) -> str:
    if not in_time:
        problem = f"hook ran past specified timeout of {hook.timeout:.1f}s"
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        problem = f"signal: {(signal.strsignal(number) or str(number)).lower()}"
    elif status:
        problem = f"exit status {os.WEXITSTATUS(status)}"
    else:
        return ""
    return f"{problem}, stdout+stderr: {output.decode(errors='replace')}"


class _Exchange:
    """Feeds the state and collects the output until the hook exits; a descendant that keeps the pipes open is not
    waited for.
    """

    def __init__(self, stdin: int, output: int, state: bytes) -> None:
        self.stdin = stdin
        self.output_fd = output
        self.state = memoryview(state)
        self.output = b""
        os.set_blocking(stdin, False)
        os.set_blocking(output, False)

    def close(self) -> None:
        for fd in (self.stdin, self.output_fd):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.output_fd = -1

    def run(self, pidfd: int, timeout: int) -> bool:
        """False when the time was up."""
        deadline = time.monotonic() + timeout if timeout else None
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self.output_fd, select.POLLIN)
        poll.register(self.stdin, select.POLLOUT)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = dict(poll.poll(left))
            if not ready:
                return False
            if self.stdin in ready and not self._feed():
                poll.unregister(self.stdin)
            if self.output_fd in ready and not self._collect():
                poll.unregister(self.output_fd)
            if pidfd in ready:
                while self._collect():
                    pass
                return True

    def _feed(self) -> bool:
        """False when all is written or nobody reads; then the pipe is closed for the hook to see the end, but its
        number stays taken.
        """
        try:
            self.state = self.state[os.write(self.stdin, self.state) :]
        except BlockingIOError:
            return True
        except OSError as e:
            if e.errno != EPIPE:
                raise
            self.state = self.state[:0]
        if self.state:
            return True
        os.dup2(self.output_fd, self.stdin, inheritable=False)
        return False

    def _collect(self) -> bool:
        """False at the end of the output, or when there is none now."""
        try:
            data = os.read(self.output_fd, _CHUNK)
        except BlockingIOError:
            return False
        self.output += data[: MAX_OUTPUT - len(self.output)]
        return bool(data)
