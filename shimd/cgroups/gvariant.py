"""GVariant text (https://docs.gtk.org/glib/gvariant-text-format.html) as a D-Bus signature and value. Pure.

For the annotations ``org.systemd.property.*``, whose values are of the type that systemd wants for a property: the
text says which, as ``uint64 5``, ``@as []`` or ``('a', true)``; what says nothing is an ``i``, a ``d`` or an ``s``.
Maybe types (``just``, ``nothing``), which D-Bus has not, and handles, which are descriptors, are no values here.
"""

from __future__ import annotations

import re

from shimd.records import Record
from shimd.typed import Any, Callable

Variant = tuple[str, Any]  # D-Bus signature, value

_KEYWORDS = {
    "boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u",
    "int64": "x", "uint64": "t", "double": "d", "string": "s", "objectpath": "o", "signature": "g",
}  # fmt: skip
_INTEGERS = {
    "y": (0, 2**8 - 1), "n": (-(2**15), 2**15 - 1), "q": (0, 2**16 - 1), "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "t": (0, 2**64 - 1),
}  # fmt: skip
_TEXTS = "sog"
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\n": ""}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<bytes>b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
    | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|inf\b|nan\b))
    | (?P<type>@[a-z(){}]+)
    | (?P<word>[a-z][a-z0-9]*)
    | (?P<sign>[][(){}<>,:])
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Node(Record):
    """``kind``: "number", "text", "bytes", "boolean", "array", "dict", "tuple" or "variant"; ``wanted`` the type that
    the text gives it, "" for none.
    """

    kind: str
    value: Any
    wanted: str = ""


def parse(text: str) -> Variant:
    """Raises ValueError."""
    reader = _Reader(text)
    node = reader.value(0)
    reader.expect_end()
    signature = _infer(node)
    return signature, _build(node, signature)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._next()

    def _next(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found is None or found.lastgroup is None:
            rest = self._text[self._at :].strip()
            if rest:
                raise ValueError(f"unexpected {rest[:20]!r}")
            self._kind, self._token = "", ""
            return
        self._at = found.end()
        self._kind, self._token = found.lastgroup, found[found.lastgroup]

    def expect_end(self) -> None:
        if self._kind:
            raise ValueError(f"unexpected {self._token!r} after the value")

    def _skip(self, sign: str) -> bool:
        if self._kind != "sign" or self._token != sign:
            return False
        self._next()
        return True

    def _expect(self, sign: str) -> None:
        if not self._skip(sign):
            raise ValueError(f"expected {sign!r} instead of {self._token!r}")

    def value(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        kind, token = self._kind, self._token
        self._next()
        match kind, token:
            case (("number" | "text" | "bytes"), _):
                return _Node(kind, token)
            case "type", _:
                return _typed(self.value(depth + 1), _complete_type(token[1:]))
            case "word", "true" | "false":
                return _Node("boolean", token == "true")
            case "word", _ if token in _KEYWORDS:
                return _typed(self.value(depth + 1), _KEYWORDS[token])
            case "sign", "[":
                return _Node("array", self._sequence("]", depth))
            case "sign", "(":
                return _Node("tuple", self._sequence(")", depth))
            case "sign", "{":
                return _Node("dict", self._entries(depth))
            case "sign", "<":
                inner = self.value(depth + 1)
                self._expect(">")
                return _Node("variant", inner)
        raise ValueError(f"unexpected {token!r}" if token else "the value is missing")

    def _sequence(self, end: str, depth: int) -> list[_Node]:
        nodes: list[_Node] = []
        while not self._skip(end):
            if nodes:
                self._expect(",")
                if end == ")" and self._skip(end):  # the comma of a tuple of one
                    break
            nodes.append(self.value(depth + 1))
        return nodes

    def _entries(self, depth: int) -> list[tuple[_Node, _Node]]:
        entries: list[tuple[_Node, _Node]] = []
        while not self._skip("}"):
            if entries:
                self._expect(",")
            key = self.value(depth + 1)
            self._expect(":")
            entries.append((key, self.value(depth + 1)))
        return entries


# ---- types -----------------------------------------------------------------------------------------------------------


def _typed(node: _Node, signature: str) -> _Node:
    if node.wanted not in ("", signature):
        raise ValueError(f"a value of type {node.wanted} where {signature} is wanted")
    return node._replace(wanted=signature)


def _complete_type(signature: str) -> str:
    """Raises ValueError unless it is one complete type."""
    if _end_of_type(signature, 0, 0) != len(signature):
        raise ValueError(f"{signature!r} is not one type")
    return signature


def _end_of_type(signature: str, at: int, depth: int) -> int:
    if at >= len(signature) or depth > _MAX_DEPTH:
        raise ValueError(f"{signature!r} is not one type")
    letter = signature[at]
    if letter == "a":
        return _end_of_type(signature, at + 1, depth + 1)
    if letter in "({":
        end = ")" if letter == "(" else "}"
        at += 1
        while at < len(signature) and signature[at] != end:
            at = _end_of_type(signature, at, depth + 1)
        if at < len(signature):
            return at + 1
    elif letter in "bynqiuxtdsogv":
        return at + 1
    raise ValueError(f"{signature!r} is not one type")


def _members(signature: str) -> list[str]:
    """The types in a tuple's or an entry's signature."""
    members, at = [], 1
    while at < len(signature) - 1:
        end = _end_of_type(signature, at, 0)
        members.append(signature[at:end])
        at = end
    return members


def _infer(node: _Node) -> str:
    if node.wanted:
        return node.wanted
    match node.kind:
        case "number":
            return "d" if _is_float(node.value) else "i"
        case "array":
            return "a" + _infer_common(node.value)
        case "tuple":
            return f"({''.join(map(_infer, node.value))})"
        case "dict":
            return f"a{{{_infer_common([k for k, _ in node.value])}{_infer_common([v for _, v in node.value])}}}"
    return {"text": "s", "bytes": "ay", "boolean": "b", "variant": "v"}[node.kind]


def _infer_common(nodes: list[_Node]) -> str:
    """The type that one of the elements is given, or the one that all have by themselves."""
    if not nodes:
        raise ValueError("an empty array needs a type, as in @as []")
    given = [node for node in nodes if _is_given(node)] or [node for node in nodes if _infer(node) == "d"]
    return _infer((given or nodes)[0])


def _is_given(node: _Node) -> bool:
    return bool(node.wanted) or (node.kind in ("array", "tuple") and any(map(_is_given, node.value)))


def _is_float(number: str) -> bool:
    return not number.lower().lstrip("+-").startswith("0x") and any(letter in number for letter in ".eEin")


# ---- values ----------------------------------------------------------------------------------------------------------


def _build(node: _Node, signature: str) -> Any:
    _typed(node, signature)
    builder = _BUILDERS.get(node.kind)
    assert builder is not None, node.kind
    return builder(node.value, signature)


def _wrong(what: str, signature: str) -> ValueError:
    return ValueError(f"{what} is not of type {signature}")


def _number(token: str, signature: str) -> int | float:
    if signature == "d":
        return float(int(token, 16)) if "x" in token.lower() else float(token)
    if signature not in _INTEGERS or _is_float(token):
        raise _wrong(token, signature)
    digits = token.lstrip("+-")
    octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
    number = int(token, 8) if octal else int(token, 0)
    low, high = _INTEGERS[signature]
    if not low <= number <= high:
        raise ValueError(f"{token} is out of the range of type {signature}")
    return number


def _text(token: str, signature: str) -> str:
    if signature not in _TEXTS:
        raise _wrong(token, signature)
    return _unescape(token[1:-1])


def _bytes(token: str, signature: str) -> bytes:
    """A byte string ends with a null byte, as C's do."""
    if signature != "ay":
        raise _wrong(token, signature)
    return _unescape(token[2:-1]).encode("latin-1", "replace") + b"\0"


def _unescape(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        code = found[1]
        if len(code) > 1:
            return chr(int(code, 8) & 0xFF if code.isdecimal() else int(code[1:], 16))
        return _ESCAPES.get(code, code)

    return _ESCAPE.sub(replace, text)


def _boolean(value: bool, signature: str) -> bool:  # noqa: FBT001  (a value of the text, not a switch)
    if signature != "b":
        raise _wrong(str(value).lower(), signature)
    return value


def _array(nodes: list[_Node], signature: str) -> list[Any] | bytes:
    if not signature.startswith("a") or signature.startswith("a{"):
        raise _wrong("an array", signature)
    values = [_build(node, signature[1:]) for node in nodes]
    return bytes(values) if signature == "ay" else values


def _dict(entries: list[tuple[_Node, _Node]], signature: str) -> dict[Any, Any]:
    members = _members(signature[1:]) if signature.startswith("a{") else []
    if len(members) != 2:
        raise _wrong("a dictionary", signature)
    return {_build(key, members[0]): _build(value, members[1]) for key, value in entries}


def _tuple(nodes: list[_Node], signature: str) -> tuple[Any, ...]:
    members = _members(signature) if signature.startswith("(") else []
    if len(members) != len(nodes) or not nodes:
        raise _wrong("a tuple", signature)
    return tuple(_build(node, member) for node, member in zip(nodes, members, strict=True))


def _variant(node: _Node, signature: str) -> Variant:
    if signature != "v":
        raise _wrong("a variant", signature)
    inner = _infer(node)
    return inner, _build(node, inner)


_BUILDERS: dict[str, Callable[[Any, str], Any]] = {
    "number": _number,
    "text": _text,
    "bytes": _bytes,
    "boolean": _boolean,
    "array": _array,
    "dict": _dict,
    "tuple": _tuple,
    "variant": _variant,
}
