"""shimctl: see and steer the containers of a running shimd."""

from __future__ import annotations

import importlib

import click

from clients.shimctl.connect import DEFAULT_ADDRESS

# Verb to module; modules are imported when their verb is used, so that completion and --help stay quick.
VERBS = {
    "run": "attached",
    "create": "lifecycle",
    "start": "lifecycle",
    "exec": "attached",
    "attach": "attached",
    "kill": "lifecycle",
    "wait": "lifecycle",
    "delete": "lifecycle",
    "list": "show",
    "state": "show",
    "inspect": "show",
    "pids": "show",
    "pause": "lifecycle",
    "resume": "lifecycle",
    "update": "lifecycle",
    "stats": "stats",
    "top": "stats",
    "events": "watch",
    "logs": "watch",
    "plan": "describe",
    "features": "describe",
    "spec": "describe",
    "version": "describe",
    "doctor": "describe",
    "completion": "describe",
}


class Verbs(click.Group):
    """A group whose commands live in clients.shimctl.<module>, as an attribute named like the verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command = getattr(importlib.import_module(f"clients.shimctl.{module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


class Target:
    """What the global options say; the object of every command's context."""

    def __init__(self, address: str, namespace: str, *, as_json: bool) -> None:
        self.address = address
        self.namespace = namespace
        self.as_json = as_json


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-a", "--address", envvar="SHIMD_ADDRESS", default=DEFAULT_ADDRESS, show_default=True, help="Socket of the daemon."
)
@click.option(
    "-n",
    "--namespace",
    envvar="SHIMD_NAMESPACE",
    default="default",
    show_default=True,
    help="Namespace of the containers.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)
@click.pass_context
def main(ctx: click.Context, address: str, namespace: str, output: str) -> None:
    """See and steer the containers of a running shimd.

    The exit code of `run`, `exec`, `attach` and `wait` is the program's own (128 plus the signal that killed it);
    125 when shimctl or the daemon failed, 126 and 127 when the program could not be executed or was not found.
    """
    ctx.obj = Target(address, namespace, as_json=output == "json")
