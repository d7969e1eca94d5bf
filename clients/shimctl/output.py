"""Two forms of every answer: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

# Imported for its effect: the descriptors let MessageToDict expand the Any fields of events and statistics.
from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2, runc_options_pb2, task_events_pb2  # noqa: F401

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def as_dict(message: Message) -> dict[str, Any]:
    """The message as JSON values, with the field names of the .proto files."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def unpack(packed: ProtoAny, message: Message) -> bool:
    """Fill ``message`` if ``packed`` is of its type. Any.Unpack wants a slash, and containerd writes none."""
    if packed.type_url.rpartition("/")[2] != message.DESCRIPTOR.full_name:
        return False
    message.ParseFromString(packed.value)
    return True


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table that stays parseable by columns when it is not on a terminal."""
    result = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for header in headers:
        result.add_column(header, no_wrap=True, overflow="ignore")
    for row in rows:
        result.add_row(*row)
    return result


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width: nothing is cut
    console.print(table(headers, rows))


def size(value: float) -> str:
    """Bytes with a binary unit: 1536 is "1.5KiB"."""
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError


def moment(stamp: Timestamp) -> str:
    """RFC 3339 in UTC; "-" for a time that is not set."""
    if not stamp.seconds:
        return "-"
    return datetime.fromtimestamp(stamp.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(stamp: Timestamp) -> str:
    """How long ago, in one unit: "5s", "3m", "2h", "9d"."""
    if not stamp.seconds:
        return "-"
    seconds = max(0, int(datetime.now(UTC).timestamp()) - stamp.seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
