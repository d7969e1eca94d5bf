"""Tables as Go's tabwriter lays them out for runc, whose rows programs take apart by spaces."""

from __future__ import annotations

from shimd.typed import Iterable, Sequence

_MIN_WIDTH = 12
_PADDING = 3


def table(rows: Iterable[Sequence[str]]) -> str:
    """One line for each row; columns are as wide as their longest cell, the last one as it is."""
    lines = [list(row) for row in rows]
    columns = max(map(len, lines), default=0) - 1
    widths = [max(_MIN_WIDTH, *(len(line[column]) + _PADDING for line in lines)) for column in range(columns)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)) + line[-1] + "\n"
        for line in lines
    )
