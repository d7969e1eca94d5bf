"""What the verbs share: the container id argument with its completion, and running a coroutine on an open client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from clients.shimctl.connect import Client, Failure, perform
from clients.shimctl.main import Target
from shimd.api.v1 import runtime_pb2 as pb

T = TypeVar("T")


def on_client(target: Target, work: Callable[[Client], Awaitable[T]], *, program: bool = False) -> T:
    """Connect, run ``work`` and disconnect; failures end the command. ``program``: exit codes as a shell gives them."""

    async def connected() -> T:
        async with Client(target.address, target.namespace) as client:
            return await work(client)

    return perform(target.address, connected(), program=program)


def _complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    options = ctx.find_root().params

    async def ids(client: Client) -> list[str]:
        answer = await client.runtime.List(pb.ListRequest(), metadata=client.metadata, timeout=1)
        return [c.id for c in answer.containers if c.id.startswith(incomplete)]

    try:
        return on_client(Target(options["address"], options["namespace"], as_json=False), ids)
    except Failure:  # no daemon: nothing to offer
        return []


container_id = click.argument("container_id", metavar="ID", shell_complete=_complete_id)
container_ids = click.argument("container_ids", metavar="ID...", nargs=-1, required=True, shell_complete=_complete_id)
optional_ids = click.argument("container_ids", metavar="[ID...]", nargs=-1, shell_complete=_complete_id)
exec_option = click.option(
    "--exec", "exec_id", default="", metavar="EXEC", help="An exec instead of the first process."
)
pass_target = click.make_pass_decorator(Target)


def each(target: Target, container_ids: tuple[str, ...], work: Callable[[Client, str], Awaitable[None]]) -> None:
    """Do ``work`` for every id, say which were done, and report every failure; exit 1 when there was one."""
    failed: list[Failure] = []
    for name in container_ids:
        try:
            on_client(target, lambda client, name=name: work(client, name))  # type: ignore[misc]
        except Failure as failure:
            failure.show()
            failed.append(failure)
        else:
            click.echo(name)
    if failed:
        raise SystemExit(1)
