"""``ps``: the processes of a container, as the host's ps shows them."""

from __future__ import annotations

from shimd.cli.command import Call, Command, text
from shimd.errors import InvalidArgument, RuntimeFailure

COMMAND = Command(
    "displays the processes that run inside a container",
    "<container-id> [ps options]",
    options=(text("format", "select one of: table or json", "f", default="table"),),
    least=1,
    most=-1,
    stop_at=1,
)


def run(call: Call) -> int:
    form = call.text("format")
    if form not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    with call.container() as container:
        pids = call.runtime().pids(container)
    if form == "json":
        # Go's encoding of an empty list.
        call.write(f"[{','.join(map(str, pids))}]\n" if pids else "null\n")
    else:
        call.write("".join(f"{line}\n" for line in rows_of(pids, _host_ps(call.arguments[1:] or ["-ef"]))))
    return 0


def _host_ps(arguments: list[str]) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["ps", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise RuntimeFailure(f"run ps: {error.strerror}") from error
    output = done.stdout.decode("utf-8", "surrogateescape")
    if done.returncode != 0:
        raise RuntimeFailure(f"ps {' '.join(arguments)}: exit status {done.returncode}: {output.strip()}")
    return output


def rows_of(pids: list[int], output: str) -> list[str]:
    """The header and the rows of these processes. Raises RuntimeFailure for an output without a column PID."""
    header, *rows = output.split("\n")
    try:
        column = header.split().index("PID")
    except ValueError:
        raise RuntimeFailure("couldn't find PID field in ps output") from None
    wanted = set(map(str, pids))
    return [header, *(row for row in rows if row.strip() and _field(row, column) in wanted)]


def _field(row: str, column: int) -> str:
    fields = row.split()
    if len(fields) <= column or not fields[column].isdecimal():
        raise RuntimeFailure(f"unable to parse pid: {row!r}")
    return fields[column]
