"""The options of Go's flag library as runc has them, so that what engines send to it is understood here.

Facts: every long name may have one dash or two; a value follows after ``=`` or as the next argument; an option may
follow arguments, unless the command stops there; ``--`` ends the options and is dropped; a dash alone, and what looks
like a negative number, are arguments.
"""

from __future__ import annotations

from shimd.cli.command import Option, Value
from shimd.errors import InvalidArgument

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class UsageError(InvalidArgument):
    """The command line is wrong; the help of the command is shown with it. ``reason`` follows "Incorrect Usage"."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Parsed:
    """Values by long name, defaults included; the names that were given; the arguments; whether help is wanted."""

    def __init__(self, options: tuple[Option, ...]) -> None:
        self.values: dict[str, Value] = {
            option.name: list(option.default) if isinstance(option.default, list) else option.default
            for option in options
        }
        self.given: set[str] = set()
        self.arguments: list[str] = []
        self.help = False


def parse(words: list[str], options: tuple[Option, ...], *, stop_at: int = -1, to_verb: bool = False) -> Parsed:
    """``to_verb``: the first argument is the verb, and what follows is for another call. Raises UsageError."""
    parsed = Parsed(options)
    known = {name: option for option in options for name in (option.name, option.short) if name}
    rest = iter(words)
    for word in rest:
        if to_verb and parsed.arguments:
            parsed.arguments.append(word)
            break
        if word == "--":
            break
        if len(parsed.arguments) == stop_at or (word[:1] == "-" and not word.lstrip("-")[:1].isalpha() and word != "-"):
            parsed.arguments.append(word)
            break
        if word[:1] != "-" or word == "-":
            parsed.arguments.append(word)
            continue
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in ("h", "help") and name not in known:
            parsed.help = True
            continue
        option = known.get(name)
        if option is None:
            raise _usage(f"flag provided but not defined: -{name}")
        if option.kind != "flag" and not equals:
            following = next(rest, None)
            if following is None:
                raise _usage(f"flag needs an argument: {word}")
            value = following
        _set(parsed, option, name, value)
    parsed.arguments += rest
    return parsed


def _set(parsed: Parsed, option: Option, name: str, value: str) -> None:
    parsed.given.add(option.name)
    if option.kind == "texts":
        collected = parsed.values[option.name]
        assert isinstance(collected, list)
        collected.append(value)
    elif option.kind == "text":
        parsed.values[option.name] = value
    elif option.kind == "number":
        parsed.values[option.name] = _number(name, value)
    else:
        parsed.values[option.name] = _boolean(name, value or "true")


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise _usage(f'invalid boolean value "{value}" for flag -{name}')


def _number(name: str, value: str) -> int:
    try:
        number = int(value if value.isascii() else "", 0)
    except ValueError:
        number = -(1 << 64)
    if -(1 << 63) <= number < 1 << 63:
        return number
    raise _usage(f'invalid value "{value}" for flag -{name}: not a number of 64 bits')


def _usage(message: str) -> UsageError:
    return UsageError(message, reason=message)
