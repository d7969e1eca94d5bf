"""create, start, kill, wait, delete, pause, resume, update: one Task RPC each."""

from __future__ import annotations

import json
import re
import secrets
import signal
from pathlib import Path
from typing import Any

import click
from google.protobuf.any_pb2 import Any as ProtoAny

from clients.shimctl.bundle import CPU_PERIOD, Size, has_terminal, read_bundle
from clients.shimctl.common import container_id, container_ids, each, exec_option, on_client, pass_target
from clients.shimctl.connect import Client
from clients.shimctl.main import Target
from clients.shimctl.output import as_dict, print_json
from shimd.api.containerd import runc_options_pb2
from shimd.api.containerd import task_v3_pb2 as task

RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@click.command("create")
@click.option(
    "-b",
    "--bundle",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=Path(),
    help="Bundle directory [default: .]",
)
@click.option("--stdin", default="", metavar="URI", help="FIFO or file, or attach: for `shimctl attach`.")
@click.option(
    "--stdout", default="attach:", show_default=True, metavar="URI", help="FIFO, file, file://PATH or attach:"
)
@click.option("--stderr", default=None, metavar="URI", help="As --stdout [default: the same]")
@click.option("--no-pivot", is_flag=True, help="Use MS_MOVE and chroot instead of pivot_root.")
@click.option("--no-new-keyring", is_flag=True, help="Keep the session keyring.")
@click.argument("name", metavar="[ID]", default="")
@pass_target
def create_command(
    target: Target,
    bundle: Path,
    name: str,
    stdin: str,
    stdout: str,
    stderr: str | None,
    *,
    no_pivot: bool,
    no_new_keyring: bool,
) -> None:
    """Create a container from a bundle, ready to start."""
    name = name or secrets.token_hex(6)
    terminal = has_terminal(read_bundle(bundle))
    options = ProtoAny()
    options.Pack(runc_options_pb2.Options(no_pivot_root=no_pivot, no_new_keyring=no_new_keyring))

    async def create(client: Client) -> task.CreateTaskResponse:
        request = task.CreateTaskRequest(
            id=name,
            bundle=str(bundle),
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr="" if terminal else (stdout if stderr is None else stderr),
            options=options,
        )
        return await client.task.Create(request, metadata=client.metadata)

    answer = on_client(target, create, program=True)
    if target.as_json:
        print_json({"id": name, "pid": answer.pid})
    else:
        click.echo(name)


@click.command("start")
@container_ids
@pass_target
def start_command(target: Target, container_ids: tuple[str, ...]) -> None:
    """Start created containers."""

    async def start(client: Client, name: str) -> None:
        await client.task.Start(task.StartRequest(id=name), metadata=client.metadata)

    each(target, container_ids, start)


class Signal(click.ParamType[int]):
    """A signal by number or name, with or without SIG, RTMIN+N too."""

    name = "signal"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).upper().removeprefix("SIG")
        if text.isdecimal() and text.isascii() and 0 < int(text) <= signal.SIGRTMAX:
            return int(text)
        if text.startswith("RT"):
            return self._real_time(text, str(value), param, ctx)
        try:
            return int(signal.Signals[f"SIG{text}"])
        except KeyError:
            self.fail(f"unknown signal {value!r}", param, ctx)

    def _real_time(self, text: str, given: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """RTMIN, RTMIN+N, RTMAX, RTMAX-N: signal(7)."""
        found = re.fullmatch(r"RT(?:MIN(?:\+(\d+))?|MAX(?:-(\d+))?)", text)
        if found:
            up, down = (int(group or 0) for group in found.groups())
            number = signal.SIGRTMIN + up if text.startswith("RTMIN") else signal.SIGRTMAX - down
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return int(number)
        self.fail(f"unknown signal {given!r}", param, ctx)


@click.command("kill")
@click.option("-s", "--signal", "number", type=Signal(), default="TERM", show_default=True, help="Name or number.")
@click.option("--all", "everything", is_flag=True, help="Every process of the container.")
@exec_option
@container_ids
@pass_target
def kill_command(
    target: Target, container_ids: tuple[str, ...], number: int, exec_id: str, *, everything: bool
) -> None:
    """Send a signal to containers."""

    async def kill(client: Client, name: str) -> None:
        request = task.KillRequest(id=name, exec_id=exec_id, signal=number, all=everything)
        await client.task.Kill(request, metadata=client.metadata)

    each(target, container_ids, kill)


@click.command("wait")
@exec_option
@container_id
@pass_target
def wait_command(target: Target, container_id: str, exec_id: str) -> None:
    """Wait until a container or exec has exited, and end with its exit status."""

    async def wait(client: Client) -> task.WaitResponse:
        return await client.task.Wait(task.WaitRequest(id=container_id, exec_id=exec_id), metadata=client.metadata)

    answer = on_client(target, wait, program=True)
    if target.as_json:
        print_json(as_dict(answer))
    raise SystemExit(answer.exit_status)


@click.command("delete")
@click.option("-f", "--force", is_flag=True, help="Kill what is running first.")
@exec_option
@container_ids
@pass_target
def delete_command(target: Target, container_ids: tuple[str, ...], exec_id: str, *, force: bool) -> None:
    """Delete stopped or created containers, or execs."""

    async def delete(client: Client, name: str) -> None:
        if force:
            await _end(client, name, exec_id)
        await client.task.Delete(task.DeleteRequest(id=name, exec_id=exec_id), metadata=client.metadata)

    each(target, container_ids, delete)


async def _end(client: Client, name: str, exec_id: str) -> None:
    """SIGKILL what runs and wait for its end; a process that has ended already is fine."""
    import grpc

    try:
        await client.task.Kill(
            task.KillRequest(id=name, exec_id=exec_id, signal=signal.SIGKILL, all=not exec_id), metadata=client.metadata
        )
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            raise
        return
    await client.task.Wait(task.WaitRequest(id=name, exec_id=exec_id), metadata=client.metadata)


@click.command("pause")
@container_ids
@pass_target
def pause_command(target: Target, container_ids: tuple[str, ...]) -> None:
    """Freeze every process of containers."""

    async def pause(client: Client, name: str) -> None:
        await client.task.Pause(task.PauseRequest(id=name), metadata=client.metadata)

    each(target, container_ids, pause)


@click.command("resume")
@container_ids
@pass_target
def resume_command(target: Target, container_ids: tuple[str, ...]) -> None:
    """Let paused containers go on."""

    async def resume(client: Client, name: str) -> None:
        await client.task.Resume(task.ResumeRequest(id=name), metadata=client.metadata)

    each(target, container_ids, resume)


@click.command("update")
@click.option(
    "-r",
    "--resources",
    type=click.File("rb"),
    help="OCI resources object, JSON, in place of the other options; - for standard input.",
)
@click.option("--memory", type=Size(), help="Memory limit: 512m, 2g, -1 for none.")
@click.option("--memory-swap", type=Size(), help="Memory plus swap.")
@click.option("--memory-reservation", type=Size(), help="Soft limit.")
@click.option("--cpus", type=click.FloatRange(min=0.01), help="CPU limit, in CPUs: 1.5.")
@click.option("--cpu-shares", type=int, help="Relative weight.")
@click.option("--cpuset-cpus", help="CPUs: 0-3,5.")
@click.option("--pids-limit", type=int, help="Processes and threads, -1 for no limit.")
@container_id
@pass_target
def update_command(target: Target, /, container_id: str, resources: Any, **options: Any) -> None:
    """Change the limits of a container."""
    document = resources.read() if resources else json.dumps(_resources(options)).encode()
    if document == b"{}":
        raise click.UsageError("nothing to change: give a limit")

    async def update(client: Client) -> None:
        request = task.UpdateTaskRequest(id=container_id, resources=ProtoAny(type_url=RESOURCES_URL, value=document))
        await client.task.Update(request, metadata=client.metadata)

    on_client(target, update)
    click.echo(container_id)


def _resources(options: dict[str, Any]) -> dict[str, Any]:
    cpus = options["cpus"]
    sections: dict[str, dict[str, Any]] = {
        "memory": {
            "limit": options["memory"],
            "swap": options["memory_swap"],
            "reservation": options["memory_reservation"],
        },
        "cpu": {
            "shares": options["cpu_shares"],
            "cpus": options["cpuset_cpus"],
            "quota": None if cpus is None else int(cpus * CPU_PERIOD),
            "period": None if cpus is None else CPU_PERIOD,
        },
        "pids": {"limit": options["pids_limit"]},
    }
    given = {
        name: {key: value for key, value in section.items() if value is not None} for name, section in sections.items()
    }
    return {name: section for name, section in given.items() if section}
