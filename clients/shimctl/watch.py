"""events and logs: what happened, and what was said."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import click
from google.protobuf.any_pb2 import Any as ProtoAny

from clients.shimctl.common import container_id, on_client, optional_ids, pass_target
from clients.shimctl.connect import Client, Failure
from clients.shimctl.main import Target
from clients.shimctl.output import as_dict, moment, print_json_line
from clients.shimctl.terminal import CHUNK, write_all
from shimd.api.containerd import process_pb2
from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as pb

FOLLOW_INTERVAL = 0.2  # seconds between looks at a growing file


@click.command("events")
@click.option(
    "--since", type=click.IntRange(min=0), default=0, help="First sequence number wanted; 1 is the oldest that is kept."
)
@click.option("--replay", is_flag=True, help="Stop after the events that have happened already.")
@click.option(
    "--topic", "topics", multiple=True, metavar="TOPIC", help="Only this topic, or those below it when it ends in /."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="Events of every namespace.")
@optional_ids
@pass_target
def events_command(
    target: Target,
    container_ids: Sequence[str],
    since: int,
    topics: Sequence[str],
    *,
    replay: bool,
    all_namespaces: bool,
) -> None:
    """Show events as they happen, one a line, until interrupted."""
    request = pb.EventsRequest(
        since=since or int(replay), all_namespaces=all_namespaces, ids=container_ids, topics=topics, replay_only=replay
    )

    async def stream(client: Client) -> None:
        async for event in client.runtime.Events(request, metadata=client.metadata):
            if event.missed:
                click.echo(f"shimctl: {event.missed} earlier event(s) are no longer kept", err=True)
            if target.as_json:
                print_json_line(as_dict(event))
            else:
                where = f"{event.sequence:>6}  {moment(event.timestamp)}  {event.namespace}  {event.topic:<20}"
                click.echo(f"{where}  {_details(event.event)}")

    on_client(target, stream)


def _details(event: ProtoAny) -> str:
    fields = {
        key: value for key, value in as_dict(event).items() if key != "@type" and value not in ("", 0, [], {}, None)
    }
    return " ".join(f"{key}={value}" for key, value in fields.items())


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container has exited.")
@click.option("--stderr", "want_stderr", is_flag=True, help="Standard error in place of standard output.")
@container_id
@pass_target
def logs_command(target: Target, container_id: str, *, follow: bool, want_stderr: bool) -> None:
    """Show what a container wrote to the file that is its standard output."""

    async def show(client: Client) -> None:
        state = await client.task.State(task.StateRequest(id=container_id), metadata=client.metadata)
        path = _log_file(state.stderr if want_stderr else state.stdout, container_id)
        with open(path, "rb") as file:
            _copy(file.fileno())
            if follow:
                await _follow(client, container_id, file.fileno())

    on_client(target, show)


def _log_file(uri: str, name: str) -> str:
    path = uri.removeprefix("file://")
    if not path.startswith("/"):
        raise Failure(f"the output of {name} does not go to a file", hint="`shimctl attach` shows it as it comes")
    if not os.path.isfile(path):
        raise Failure(f"{path}, the output of {name}, is not a regular file")
    return path


def _copy(fd: int) -> None:
    while data := os.read(fd, CHUNK):
        write_all(1, data)


async def _follow(client: Client, name: str, fd: int) -> None:
    """Copy what is added; a last time once the container has exited."""
    waiting = asyncio.ensure_future(_exited(client, name))
    while not waiting.done():
        await asyncio.wait([waiting], timeout=FOLLOW_INTERVAL)
        _copy(fd)
    waiting.result()
    _copy(fd)


async def _exited(client: Client, name: str) -> None:
    state = await client.task.State(task.StateRequest(id=name), metadata=client.metadata)
    if state.status != process_pb2.STOPPED:
        await client.task.Wait(task.WaitRequest(id=name), metadata=client.metadata)
