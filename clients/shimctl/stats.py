"""stats and top: use of CPU, memory, processes and disks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.live import Live

from clients.shimctl.common import on_client, optional_ids, pass_target
from clients.shimctl.connect import Client
from clients.shimctl.main import Target
from clients.shimctl.output import as_dict, print_json, print_json_line, print_table, size, table, unpack
from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2
from shimd.api.v1 import runtime_pb2 as pb

HEADERS = ("ID", "CPU %", "CPU TIME", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")
NO_LIMIT = 1 << 60  # v1 reports "no limit" as the largest multiple of a page, v2 as 2**64-1


class Usage(NamedTuple):
    """One container at one time: CPU in nanoseconds, sizes in bytes."""

    cpu: int
    memory: int
    limit: int
    pids: int
    read: int
    written: int


def usage_of(metrics: ProtoAny) -> Usage:
    """Either cgroup version's metrics in one form."""
    v1 = cgroups_v1_pb2.Metrics()
    if unpack(metrics, v1):
        entries = v1.blkio.io_service_bytes_recursive
        return Usage(
            v1.cpu.usage.total,
            max(0, v1.memory.usage.usage - v1.memory.total_inactive_file),
            v1.memory.usage.limit,
            v1.pids.current,
            sum(e.value for e in entries if e.op.lower() == "read"),
            sum(e.value for e in entries if e.op.lower() == "write"),
        )
    v2 = cgroups_v2_pb2.Metrics()
    unpack(metrics, v2)
    return Usage(
        v2.cpu.usage_usec * 1000,
        max(0, v2.memory.usage - v2.memory.inactive_file),
        v2.memory.usage_limit,
        v2.pids.current,
        sum(e.rbytes for e in v2.io.usage),
        sum(e.wbytes for e in v2.io.usage),
    )


class Meter:
    """Turns two readings of the CPU time into a share of one CPU."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, int]] = {}

    def rows(self, answer: pb.StatsResponse) -> list[list[str]]:
        return [self._row(entry) for entry in answer.stats]

    def _row(self, entry: pb.ContainerStats) -> list[str]:
        usage = usage_of(entry.metrics)
        key = (entry.namespace, entry.id)
        now = entry.timestamp.ToNanoseconds()
        before = self._last.get(key)
        self._last[key] = (now, usage.cpu)
        share = "-"
        if before and now > before[0]:
            share = f"{100 * (usage.cpu - before[1]) / (now - before[0]):.1f}"
        limit = "-" if not 0 < usage.limit < NO_LIMIT else size(usage.limit)
        return [
            entry.id,
            share,
            f"{usage.cpu / 1e9:.3f}s",
            size(usage.memory),
            limit,
            str(usage.pids),
            size(usage.read),
            size(usage.written),
        ]


@click.command("stats")
@click.option("-A", "--all-namespaces", is_flag=True, help="Containers of every namespace.")
@optional_ids
@pass_target
def stats_command(target: Target, container_ids: Sequence[str], *, all_namespaces: bool) -> None:
    """Show once what containers use."""

    async def fetch(client: Client) -> pb.StatsResponse:
        request = pb.StatsRequest(ids=container_ids, all_namespaces=all_namespaces)
        async for answer in client.runtime.Stats(request, metadata=client.metadata):
            return answer
        return pb.StatsResponse()

    answer = on_client(target, fetch)
    if target.as_json:
        print_json([as_dict(entry) for entry in answer.stats])
    else:
        rows = Meter().rows(answer)
        print_table([HEADERS[0], *HEADERS[2:]], [[row[0], *row[2:]] for row in rows])


@click.command("top")
@click.option("-A", "--all-namespaces", is_flag=True, help="Containers of every namespace.")
@click.option(
    "-i", "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between readings."
)
@optional_ids
@pass_target
def top_command(target: Target, container_ids: Sequence[str], interval: float, *, all_namespaces: bool) -> None:
    """Show what containers use, again and again until interrupted. JSON output has one line per reading."""
    request = pb.StatsRequest(ids=container_ids, all_namespaces=all_namespaces, interval=Duration(nanos=0))
    request.interval.FromMicroseconds(int(interval * 1e6))

    async def stream_json(client: Client) -> None:
        async for answer in client.runtime.Stats(request, metadata=client.metadata):
            print_json_line([as_dict(entry) for entry in answer.stats])

    async def show_live(client: Client) -> None:
        meter = Meter()
        with Live(
            console=Console(markup=False, highlight=False), auto_refresh=False, screen=Console().is_terminal
        ) as live:
            async for answer in client.runtime.Stats(request, metadata=client.metadata):
                live.update(table(HEADERS, meter.rows(answer)), refresh=True)

    on_client(target, stream_json if target.as_json else show_live)
