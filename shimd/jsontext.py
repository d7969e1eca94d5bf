"""JSON by the standard library's C code alone: the ``json`` package around it loads ``re``, which takes 4 ms of each
call of a command line. The package is loaded where it knows more: what is wrong with a text.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

from shimd.typed import Any, NoReturn

_SPACE = " \t\n\r"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class _Settings:
    """What ``json.JSONDecoder`` has for the scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scan = make_scanner(_Settings)  # type: ignore[arg-type]  # any object with these attributes


def loads(text: str) -> Any:
    """As ``json.loads``, but NaN and infinities are refused. Raises ValueError, RecursionError."""
    stripped = text.strip(_SPACE)
    try:
        value, end = _scan(stripped, 0)
    except (StopIteration, SystemError):  # the latter: it has no exception to raise as long as json is not loaded
        end = -1
    if end == len(stripped):
        return value
    from json import JSONDecoder

    return JSONDecoder(parse_constant=_refuse_constant).decode(text)


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


# No check for cycles, no indentation; keys neither sorted nor skipped, no NaN.
_FLAGS = (False, False, False)
_compact = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", *_FLAGS)


def dumps(document: object) -> str:
    """Compact, and ASCII alone."""
    return "".join(_compact(document, 0))


def quoted(text: str) -> str:
    """A JSON string with the characters as they are."""
    return str(encode_basestring(text))


def pretty(document: object, indent: str, *, start: str = "\n") -> str:
    """In lines, as ``json.dumps(indent=…, ensure_ascii=False)`` has them; ``indent`` is one level of it."""
    inner = start + indent
    if isinstance(document, dict) and document:
        members = (f"{quoted(name)}: {pretty(value, indent, start=inner)}" for name, value in document.items())
        return "{" + inner + f",{inner}".join(members) + start + "}"
    if isinstance(document, list | tuple) and document:
        return "[" + inner + f",{inner}".join(pretty(value, indent, start=inner) for value in document) + start + "]"
    if isinstance(document, str):
        return quoted(document)
    return dumps(document)
