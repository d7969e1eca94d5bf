"""list, state, inspect, pids: what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from clients.shimctl.bundle import quote
from clients.shimctl.common import container_id, exec_option, on_client, optional_ids, pass_target
from clients.shimctl.connect import Client
from clients.shimctl.main import Target
from clients.shimctl.output import age, as_dict, moment, print_json, print_table, unpack
from shimd.api.containerd import process_pb2, runc_options_pb2
from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as pb


def status_name(status: int) -> str:
    return process_pb2.Status.Name(status).lower()  # type: ignore[arg-type]  # protobuf wants its own enum type


def _status_cell(item: pb.Container | pb.Exec) -> str:
    name = status_name(item.status)
    return f"{name} ({item.exit_status})" if item.status == process_pb2.STOPPED else name


@click.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="Containers of every namespace.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--execs", is_flag=True, help="Show execs below their container.")
@optional_ids
@pass_target
def list_command(
    target: Target, container_ids: Sequence[str], *, all_namespaces: bool, quiet: bool, execs: bool
) -> None:
    """List containers."""

    async def fetch(client: Client) -> pb.ListResponse:
        request = pb.ListRequest(all_namespaces=all_namespaces, ids=container_ids)
        return await client.runtime.List(request, metadata=client.metadata)

    containers = on_client(target, fetch).containers
    if quiet:
        for found in containers:
            click.echo(found.id)
    elif target.as_json:
        print_json([as_dict(found) for found in containers])
    else:
        rows = [row for found in containers for row in _rows(found, execs=execs)]
        headers = ["ID", "PID", "STATUS", "CREATED", "COMMAND"]
        if all_namespaces:
            headers.insert(0, "NAMESPACE")
        else:
            rows = [row[1:] for row in rows]
        print_table(headers, rows)


def _rows(found: pb.Container, *, execs: bool) -> list[list[str]]:
    rows = [
        [
            found.namespace,
            found.id,
            str(found.pid or "-"),
            _status_cell(found),
            age(found.created_at),
            quote(found.command),
        ]
    ]
    if execs:
        for item in found.execs:
            cells = [
                found.namespace,
                f"  {item.exec_id}",
                str(item.pid or "-"),
                _status_cell(item),
                age(item.started_at),
                quote(item.command),
            ]
            rows.append(cells)
    return rows


@click.command("state")
@exec_option
@container_id
@pass_target
def state_command(target: Target, container_id: str, exec_id: str) -> None:
    """Show the state of a container or exec, as containerd sees it."""

    async def fetch(client: Client) -> task.StateResponse:
        return await client.task.State(task.StateRequest(id=container_id, exec_id=exec_id), metadata=client.metadata)

    answer = on_client(target, fetch)
    document = as_dict(answer) | {"status": status_name(answer.status)}
    if target.as_json:
        print_json(document)
    else:
        document["exited_at"] = moment(answer.exited_at)
        print_table(["FIELD", "VALUE"], [[key, str(value)] for key, value in document.items()])


@click.command("inspect")
@container_id
@pass_target
def inspect_command(target: Target, container_id: str) -> None:
    """Show everything about a container: its record, spec, cgroups, mounts and timings, as JSON."""

    async def fetch(client: Client) -> pb.InspectResponse:
        return await client.runtime.Inspect(pb.InspectRequest(id=container_id), metadata=client.metadata)

    answer = on_client(target, fetch)
    document: dict[str, Any] = as_dict(answer)
    document["spec"] = json.loads(answer.spec or b"null")
    document["state"] = json.loads(answer.state or b"null")
    document["phases"] = {phase.name: phase.duration.ToMicroseconds() / 1e6 for phase in answer.phases}
    print_json(document)


@click.command("pids")
@container_id
@pass_target
def pids_command(target: Target, container_id: str) -> None:
    """List the processes of a container by their pid on the host."""

    async def fetch(client: Client) -> task.PidsResponse:
        return await client.task.Pids(task.PidsRequest(id=container_id), metadata=client.metadata)

    processes = [(entry.pid, _exec_of(entry)) for entry in on_client(target, fetch).processes]
    if target.as_json:
        print_json([{"pid": pid, "exec_id": name, "command": _command_line(pid)} for pid, name in processes])
    else:
        print_table(
            ["PID", "EXEC", "COMMAND"], [[str(pid), name or "-", quote(_command_line(pid))] for pid, name in processes]
        )


def _exec_of(entry: process_pb2.ProcessInfo) -> str:
    details = runc_options_pb2.ProcessDetails()
    return details.exec_id if unpack(entry.info, details) else ""


def _command_line(pid: int) -> list[str]:
    """argv from /proc, proc(5); [] once the process is gone, or where the daemon's processes are not ours to see."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [part.decode(errors="replace") for part in file.read(4096).split(b"\0") if part]
    except OSError:
        return []
