"""The connection to the daemon, and how its errors are shown."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click
import grpc

from shimd.api.containerd.task_v3_pb2_grpc import TaskStub
from shimd.api.v1.runtime_pb2_grpc import RuntimeStub

if TYPE_CHECKING:
    from shimd.api.containerd.task_v3_pb2_grpc import TaskAsyncStub
    from shimd.api.v1.runtime_pb2_grpc import RuntimeAsyncStub

DEFAULT_ADDRESS = "/run/shimd/shimd.sock"
HINT_KEY = "shimd-hint-bin"
NOT_EXECUTABLE = ("permission denied", "is a directory", "exec format error")
CLIENT_FAILED = 125  # as docker: the client or the daemon failed, not the program

T = TypeVar("T")


class Failure(click.ClickException):
    """One or two lines on stderr: what failed, and what to do about it."""

    def __init__(self, message: str, *, hint: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = code  # type: ignore[misc]  # click declares it for the class; ours differs by failure

    def show(self, file: Any = None) -> None:
        click.echo(f"shimctl: {self.message}", err=True)
        if self.hint:
            click.echo(f"         {self.hint}", err=True)


def check_socket(address: str) -> None:
    """Refuse early, with the reason, what gRPC would only call "failed to connect"."""
    start = f"start it with `systemctl start shimd` or `shimd --socket {address}`, or name another with --address"
    try:
        mode = os.stat(address).st_mode
    except FileNotFoundError:
        raise Failure(f"no daemon at {address}", hint=start, code=CLIENT_FAILED) from None
    except PermissionError:
        raise Failure(f"no permission to reach {address}", hint="run as root", code=CLIENT_FAILED) from None
    if not stat.S_ISSOCK(mode):
        raise Failure(f"{address} is not a socket", hint=start, code=CLIENT_FAILED)
    if not os.access(address, os.W_OK):
        raise Failure(f"no permission to use {address}", hint="run as root", code=CLIENT_FAILED)


class Client:
    """An open channel with both services; an async context manager."""

    runtime: RuntimeAsyncStub
    task: TaskAsyncStub

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self.namespace = namespace
        self.metadata = (("containerd-namespace", namespace),)

    async def __aenter__(self) -> Self:
        check_socket(self.address)
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self.address}", options=[("grpc.max_receive_message_length", 16 << 20)]
        )
        self.runtime = RuntimeStub(self._channel)
        self.task = TaskStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)


def failure_of(error: grpc.aio.AioRpcError, address: str) -> Failure:
    """The message for a failed call."""
    hint = ""
    trailing: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]  # stubs
    for key, value in trailing:
        if key == HINT_KEY and isinstance(value, bytes):
            hint = value.decode(errors="replace")
    message = error.details() or error.code().name.lower().replace("_", " ")
    if error.code() is grpc.StatusCode.UNAVAILABLE and not hint:
        message = f"the daemon at {address} does not answer"
        hint = f"start it with `systemctl start shimd` or `shimd --socket {address}`"
    elif error.code() is grpc.StatusCode.CANCELLED:
        message = "interrupted"
    return Failure(message, hint=hint)


def program_failure(failure: Failure) -> Failure:
    """Give the exit codes of a shell to a program that could not be started: 127 not found, 126 not executable."""
    code = CLIENT_FAILED
    if re.search(r'\bexec(: "| /)', failure.message):
        if "executable file not found" in failure.message or "no such file or directory" in failure.message:
            code = 127
        elif any(text in failure.message for text in NOT_EXECUTABLE):
            code = 126
    return Failure(failure.message, hint=failure.hint, code=code)


def perform(address: str, work: Coroutine[Any, Any, T], *, program: bool = False) -> T:
    """Run a command's coroutine; a failed call ends it with its message. ``program``: exit codes of a shell."""
    ended: list[signal.Signals] = []
    try:
        return asyncio.run(_ending_in_order(work, ended))
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error, address)
        raise (program_failure(failure) if program else failure) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except asyncio.CancelledError:
        if not ended:
            raise
        raise SystemExit(128 + ended[0]) from None


async def _ending_in_order(work: Coroutine[Any, Any, T], ended: list[signal.Signals]) -> T:
    """As asyncio treats SIGINT: a signal ends ``work`` by cancelling it, so that it can put the terminal right."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def end(number: signal.Signals) -> None:
        ended.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    return await work
