"""plan, features, spec, version, doctor, completion: about shimd and specs rather than containers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from clients.shimctl.bundle import is_cgroup2, make_spec, spec_options
from clients.shimctl.common import on_client, pass_target
from clients.shimctl.connect import Client, Failure
from clients.shimctl.main import Target
from clients.shimctl.output import as_dict, moment, print_json, print_table
from shimd.api.v1 import runtime_pb2 as pb
from shimd.oci.spec import default_spec


@click.command("plan", context_settings={"allow_interspersed_args": False})
@spec_options
@click.option("--id", "name", default="", help="Id used in paths and the cgroup.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_target
def plan_command(target: Target, /, name: str, command: tuple[str, ...], **options: Any) -> None:
    """Print, in order, what would be done to make a container; nothing is done."""
    bundle, document = make_spec(options, command)

    async def fetch(client: Client) -> pb.PlanResponse:
        request = pb.PlanRequest(id=name, bundle=str(bundle), spec=json.dumps(document).encode())
        return await client.runtime.Plan(request, metadata=client.metadata)

    answer = on_client(target, fetch)
    for warning in answer.warnings:
        click.echo(f"shimctl: warning: {warning}", err=True)
    if target.as_json:
        print_json(json.loads(answer.plan))
    else:
        for number, step in enumerate(answer.steps, 1):
            click.echo(f"{number:>3}  {step}")


@click.command("features")
@pass_target
def features_command(target: Target) -> None:
    """Print the OCI features document of this host and daemon, as JSON."""
    print_json(json.loads(on_client(target, _features).features))


async def _features(client: Client) -> pb.FeaturesResponse:
    return await client.runtime.Features(pb.FeaturesRequest(), metadata=client.metadata)


@click.command("doctor")
@pass_target
def doctor_command(target: Target) -> None:
    """Show what this host offers and lacks, with reason and remedy for each lack. Exit 1 when something is lacking."""
    findings = on_client(target, _features).findings
    if target.as_json:
        print_json([as_dict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = click.style("ok  ", fg="green") if finding.ok else click.style("lack", fg="red")
            click.echo(f"{mark}  {finding.name}: {finding.reason}")
            if not finding.ok and finding.remedy:
                click.echo(f"      {finding.remedy}")
    raise SystemExit(0 if all(finding.ok for finding in findings) else 1)


@click.command("version")
@pass_target
def version_command(target: Target) -> None:
    """Show the versions of the daemon and of its host."""

    async def fetch(client: Client) -> pb.VersionResponse:
        return await client.runtime.Version(pb.VersionRequest(), metadata=client.metadata)

    answer = on_client(target, fetch)
    if target.as_json:
        print_json(as_dict(answer))
        return
    fields = as_dict(answer) | {"started_at": moment(answer.started_at), "services": " ".join(answer.services)}
    print_table(["FIELD", "VALUE"], [[key, str(value)] for key, value in fields.items()])


@click.command("spec")
@click.option(
    "-b",
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Where to write it [default: .]",
)
@click.option("--rootless", is_flag=True, help="For an ordinary user.")
def spec_command(bundle: Path, *, rootless: bool) -> None:
    """Write a default config.json into a bundle."""
    path = bundle / "config.json"
    document = default_spec(rootless=rootless, cgroup2=is_cgroup2())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise Failure(f"{path} exists already", hint="remove it first") from None
    with open(fd, "w") as file:
        json.dump(document, file, indent="\t")


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script of a shell: `eval "$(shimctl completion bash)"`."""
    from clients.shimctl.main import main

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "shimctl", "_SHIMCTL_COMPLETE").source())
