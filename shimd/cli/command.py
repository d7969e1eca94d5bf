"""What a verb declares, and what it is called with. See ``shimd.cli``."""

from __future__ import annotations

import os

from shimd.errors import InvalidArgument
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.cli.messages import Messages
    from shimd.cli.parse import Parsed
    from shimd.cli.settings import Settings
    from shimd.runtime.container import Runtime
    from shimd.runtime.direct import DirectLauncher
    from shimd.runtime.model import Container

Value = bool | int | str | list[str]


class Option:
    """``kind`` is "flag", "text", "number" or "texts" (may be repeated); ``hidden`` ones are not in the help."""

    __slots__ = ("default", "help", "hidden", "kind", "name", "short")

    def __init__(self, kind: str, name: str, help_: str, short: str, default: Value, *, hidden: bool = False) -> None:
        self.kind = kind
        self.name = name
        self.help = help_
        self.short = short
        self.default = default
        self.hidden = hidden


def flag(name: str, help_: str, short: str = "", *, hidden: bool = False) -> Option:
    return Option("flag", name, help_, short, default=False, hidden=hidden)


def text(name: str, help_: str, short: str = "", *, default: str = "", hidden: bool = False) -> Option:
    return Option("text", name, help_, short, default, hidden=hidden)


def number(name: str, help_: str, short: str = "", *, default: int = 0) -> Option:
    return Option("number", name, help_, short, default)


def texts(name: str, help_: str, short: str = "") -> Option:
    """Each occurrence adds one; a comma is part of the value."""
    return Option("texts", name, help_, short, [])


class Command:
    """The declaration of a verb, or of the program itself; the fields are explained in ``shimd.cli``."""

    __slots__ = ("arguments", "code", "description", "least", "most", "options", "prefix", "stop_at", "usage")

    def __init__(
        self,
        usage: str,
        arguments: str = "",
        *,
        options: tuple[Option, ...] = (),
        description: str = "",
        least: int = 0,
        most: int = 0,
        stop_at: int = -1,
        code: int = 1,
        prefix: str = "",
    ) -> None:
        self.usage = usage
        self.arguments = arguments
        self.options = options
        self.description = description
        self.least = least
        self.most = most
        self.stop_at = stop_at
        self.code = code
        self.prefix = prefix


ID_ARGUMENT = """<container-id>

Where "<container-id>" is the name of the container."""

NEW_ID_ARGUMENT = """<container-id>

Where "<container-id>" is your name for the container that you are making; it must be unique on this host."""


class Call:
    """One call of a verb."""

    def __init__(self, settings: Settings, messages: Messages, parsed: Parsed, launcher: DirectLauncher) -> None:
        self.settings = settings
        self.messages = messages
        self.arguments = parsed.arguments
        self._values = parsed.values
        self._given = parsed.given
        self._launcher = launcher
        self._runtime: Runtime | None = None

    def flag(self, name: str) -> bool:
        return self._values[name] is True

    def text(self, name: str) -> str:
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def number(self, name: str) -> int:
        value = self._values[name]
        assert isinstance(value, int)
        return value

    def texts(self, name: str) -> list[str]:
        value = self._values[name]
        assert isinstance(value, list)
        return value

    def given(self, name: str) -> bool:
        """Whether the option was there, be it with its default."""
        return name in self._given

    @property
    def container_id(self) -> str:
        """The first argument; raises InvalidArgument when it is empty."""
        if not self.arguments[0]:
            raise InvalidArgument("container id cannot be empty")
        return self.arguments[0]

    def runtime(self) -> Runtime:
        if self._runtime is None:
            from shimd.cli.start import make_runtime

            self._runtime = make_runtime(self.settings, self._launcher)
        return self._runtime

    @property
    def protection(self) -> str:
        """How the executable that containers are made from is kept from being written to, once one was made."""
        return self._launcher.protection

    def container(self) -> Container:
        """Raises NotFound, RuntimeFailure for a damaged state file."""
        return self.runtime().load(self.container_id)

    def write(self, output: str) -> None:
        """To standard output, in full: an output that is cut short must not look like success."""
        data = output.encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(1, data) :]
