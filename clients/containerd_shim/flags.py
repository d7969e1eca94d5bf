"""The command line, as Go's flag package reads it: one dash or two, ``-name value`` or ``-name=value``, and the first
word without a dash, the action, ends it.
"""

from __future__ import annotations

from clients.containerd_shim.errors import UsageError

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterator

_SWITCHES = {"debug", "v", "version", "info"}
_VALUES = {"namespace", "id", "address", "publish-binary", "bundle", "socket", "debug-socket"}
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class Flags:
    """``action`` is "" without one."""

    __slots__ = ("action", "switches", "values")

    def __init__(self, action: str, values: dict[str, str], switches: set[str]) -> None:
        self.action = action
        self.values = values
        self.switches = switches

    def required(self, name: str) -> str:
        """Raises UsageError."""
        value = self.values.get(name, "")
        if not value:
            raise UsageError(f"-{name} is missing")
        return value


def parse(arguments: list[str]) -> Flags:
    """Raises UsageError."""
    values: dict[str, str] = {}
    switches: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return Flags(next(rest, ""), values, switches)
        if not argument.startswith("-") or argument == "-":
            return Flags(argument, values, switches)
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if name in _SWITCHES:
            _switch(switches, name, value if equals else "true")
        elif name in _VALUES:
            values[name] = value if equals else _next(rest, name)
        else:
            raise UsageError(f"flag provided but not defined: -{name}")
    return Flags("", values, switches)


def _switch(switches: set[str], name: str, value: str) -> None:
    if value in _TRUE:
        switches.add(name)
    elif value in _FALSE:
        switches.discard(name)
    else:
        raise UsageError(f"invalid boolean value {value!r} for -{name}")


def _next(rest: Iterator[str], name: str) -> str:
    value = next(rest, None)
    if value is None:
        raise UsageError(f"flag needs an argument: -{name}")
    return value
