"""run, exec, attach: verbs that show a program's output and end with its exit status."""

from __future__ import annotations

import json
from typing import Any

import click

from clients.shimctl.bundle import exec_process, has_terminal, make_spec, spec_options
from clients.shimctl.common import container_id, on_client, pass_target
from clients.shimctl.connect import Client
from clients.shimctl.duplex import Duplex
from clients.shimctl.main import Target
from clients.shimctl.output import as_dict, print_json
from clients.shimctl.session import Session, attach
from clients.shimctl.terminal import window_size
from shimd.api.v1 import runtime_pb2 as pb

ANY_ARGS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def _window() -> pb.WindowSize:
    columns, rows = window_size()
    return pb.WindowSize(width=columns, height=rows)


def _show_phases(created: pb.Created) -> None:
    for phase in created.phases:
        click.echo(f"{phase.name:>10}  {phase.duration.ToMicroseconds() / 1000:7.3f} ms", err=True)


def _warn(created: pb.Created) -> None:
    for warning in created.warnings:
        click.echo(f"shimctl: warning: {warning}", err=True)


@click.command("run", context_settings=ANY_ARGS)
@spec_options
@click.option("--id", "name", default="", help="Id of the container [default: made up]")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-d", "--detach", is_flag=True, help="Print the id and leave the container running.")
@click.option("--keep", is_flag=True, help="Do not delete the container when it has exited.")
@click.option("--timing", is_flag=True, help="Show on stderr how long each phase of the creation took.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_target
def run_command(
    target: Target,
    /,
    name: str,
    command: tuple[str, ...],
    *,
    interactive: bool,
    detach: bool,
    keep: bool,
    timing: bool,
    **options: Any,
) -> None:
    """Run COMMAND in a new container; without COMMAND, what the bundle's config.json says.

    \b
    shimctl run --rootfs /srv/alpine -it sh
    shimctl run --bundle /srv/web -d
    """
    bundle, document = make_spec(options, command)
    terminal = has_terminal(document)
    request = pb.RunRequest(
        id=name,
        bundle=str(bundle) if options["rootfs"] is None else "",
        spec=json.dumps(document).encode(),
        interactive=interactive,
        window=_window() if terminal else None,
        keep=keep or detach,
        stdio=pb.Stdio(stdout="attach:", stderr="" if terminal else "attach:", stdin="attach:" if interactive else "")
        if detach
        else None,
    )

    def on_created(created: pb.Created) -> None:
        _warn(created)
        if timing:
            _show_phases(created)

    async def attached(client: Client) -> int:
        first = pb.AttachRequest(run=request)
        return await attach(client, Session(first, interactive, terminal, detachable=keep, on_created=on_created))

    async def detached(client: Client) -> pb.Created:
        call = client.runtime.Run(request, metadata=client.metadata)
        created = pb.Created()
        async for event in call:
            if event.HasField("created"):
                created = event.created
            elif event.HasField("started"):
                break
        return created

    if not detach:
        raise SystemExit(on_client(target, attached, program=True))
    created = on_client(target, detached, program=True)
    on_created(created)
    if target.as_json:
        print_json(as_dict(created))
    else:
        click.echo(created.id)


@click.command("exec", context_settings=ANY_ARGS)
@click.option("-t", "--tty", is_flag=True, help="Give the program a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-d", "--detach", is_flag=True, help="Print the exec's id and leave it running.")
@click.option("--id", "exec_id", default="", help="Id of the exec [default: made up]")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set an environment variable.")
@click.option("-w", "--cwd", help="Working directory.")
@click.option("-u", "--user", metavar="UID[:GID]", help="User and group, numbers.")
@click.option(
    "-p",
    "--process",
    type=click.File("rb"),
    help="OCI process object, JSON, in place of the other options; - for standard input.",
)
@container_id
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_target
def exec_command(
    target: Target,
    /,
    container_id: str,
    exec_id: str,
    command: tuple[str, ...],
    process: Any,
    *,
    interactive: bool,
    detach: bool,
    **options: Any,
) -> None:
    """Run COMMAND in a running container."""
    if not command and not process:
        raise click.UsageError("a command to run is missing")
    given: bytes = process.read() if process else b""

    async def request(client: Client) -> pb.ExecRequest:
        document = given
        if not document:
            inspected = await client.runtime.Inspect(pb.InspectRequest(id=container_id), metadata=client.metadata)
            document = json.dumps(exec_process(json.loads(inspected.spec), options, command)).encode()
        stdio = pb.Stdio(stdout="attach:", stderr="" if options["tty"] else "attach:") if detach else None
        window = _window() if options["tty"] else None
        return pb.ExecRequest(
            id=container_id,
            exec_id=exec_id,
            process=document,
            interactive=interactive,
            window=window,
            keep=detach,
            stdio=stdio,
        )

    async def attached(client: Client) -> int:
        first = pb.AttachRequest(exec=await request(client))
        return await attach(client, Session(first, interactive, options["tty"], detachable=False))

    async def detached(client: Client) -> str:
        call = Duplex(client.runtime.Attach(None, metadata=client.metadata))
        await call.send(pb.AttachRequest(exec=await request(client)))
        made = exec_id
        async for event in call.events():
            if event.HasField("created"):
                made = event.created.exec_id
            elif event.HasField("started"):
                break
        return made

    if not detach:
        raise SystemExit(on_client(target, attached, program=True))
    click.echo(on_client(target, detached, program=True))


@click.command("attach")
@click.option("--exec", "exec_id", default="", metavar="EXEC", help="An exec instead of the first process.")
@click.option("--no-stdin", is_flag=True, help="Do not pass standard input on.")
@container_id
@pass_target
def attach_command(target: Target, container_id: str, exec_id: str, *, no_stdin: bool) -> None:
    """Connect to the standard streams of a running container. On a terminal, ctrl-p ctrl-q disconnects again."""

    async def attached(client: Client) -> int:
        found = await client.runtime.List(pb.ListRequest(ids=[container_id]), metadata=client.metadata)
        terminal = (
            any(c.terminal for c in found.containers)
            if not exec_id
            else any(e.terminal for c in found.containers for e in c.execs if e.exec_id == exec_id)
        )
        first = pb.AttachRequest(target=pb.AttachTarget(id=container_id, exec_id=exec_id))
        return await attach(client, Session(first, not no_stdin, terminal, detachable=True))

    raise SystemExit(on_client(target, attached, program=True))
