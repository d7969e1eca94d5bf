"""Readers of JSON values: small functions from a decoded value to a checked one, put together to tables in ``tables``.

A reader is called with the value and the ``Document`` that it is part of. A scalar reader raises ``Refused`` with the
reason; whoever called it knows where it stood and notes the problem. Readers of objects and lists go on after a
problem, so that all of them are found, and put a blank in the place of what they could not read.
"""

from __future__ import annotations

from shimd import jsontext
from shimd.errors import Problem
from shimd.typed import Any, Callable, Collection, Mapping, MappingProxyType, Protocol, Sequence

MAX_PROBLEMS = 100  # of one document; a hostile one could have a million

UINT16 = (0, 2**16 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)
INT64 = (-(2**63), 2**63 - 1)


class Refused(Exception):
    """A value is not acceptable; the message says why and names it."""


class Document:
    """Where the reading stands in a document, and what was found wrong so far."""

    def __init__(self) -> None:
        self.path: list[str | int] = []
        self.problems: list[Problem] = []
        self.unlisted = 0

    def problem(self, text: str, *below: str | int) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(pointer(*self.path, *below), text))
        else:
            self.unlisted += 1


class Reader(Protocol):
    blank: Any  # stands for a value that could not be read

    def __call__(self, value: Any, document: Document) -> Any: ...


def pointer(*tokens: str | int) -> str:
    """A JSON pointer (RFC 6901); a token that is not Unicode (a lone surrogate) is shown escaped."""
    return "".join("/" + printable(str(token)).replace("~", "~0").replace("/", "~1") for token in tokens)


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def show(value: object) -> str:
    """A value as a message names it."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    text = jsontext.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


# ---- scalars ---------------------------------------------------------------------------------------------------------


class Scalar:
    """A reader made of a function from value to value that raises ``Refused``."""

    __slots__ = ("blank", "check")

    def __init__(self, check: Callable[[Any], Any], blank: object) -> None:
        self.check = check
        self.blank = blank

    def __call__(self, value: Any, document: Document) -> Any:
        return self.check(value)


def a_string(value: Any) -> str:
    if type(value) is not str:
        raise Refused(f"expected a string, got {show(value)}")
    if "\0" in value:
        raise Refused(f"{show(value)} contains a NUL byte")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused(f"{show(value)} is not valid Unicode") from None
    return value


def a_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Refused(f"expected true or false, got {show(value)}")
    return value


def an_absolute_path(value: Any) -> str:
    if not a_string(value).startswith("/"):
        raise Refused(f"{show(value)} is not an absolute path")
    return str(value)


string = Scalar(a_string, "")
boolean = Scalar(a_boolean, blank=False)
absolute_path = Scalar(an_absolute_path, "/")


def or_none(reader: Scalar) -> Scalar:
    """An empty string is the same as none (Go's ``omitempty``)."""
    check = reader.check
    return Scalar(lambda value: check(value) if value != "" else None, None)


def integer(low: int, high: int) -> Scalar:
    def check(value: Any) -> int:
        if type(value) is not int:
            raise Refused(f"expected an integer, got {show(value)}")
        if not low <= value <= high:
            raise Refused(f"{show(value)} is not between {low} and {high}")
        return value

    return Scalar(check, max(low, 0))


def choice(what: str, names: Collection[str], complaint: str = "unknown") -> Scalar:
    known = frozenset(names)

    def check(value: Any) -> str:
        if type(value) is not str or value not in known:
            a_string(value)
            raise Refused(f"{complaint} {what} {show(value)}")
        return value

    return Scalar(check, "")


def matching(reader: Scalar, test: Callable[[Any], bool], text: str) -> Scalar:
    """A value of ``reader`` for which ``test`` holds; ``text`` says what it is not."""
    read = reader.check

    def check(value: Any) -> Any:
        result = read(value)
        if not test(result):
            raise Refused(f"{show(value)} is not {text}")
        return result

    return Scalar(check, reader.blank)


def converted(reader: Scalar, convert: Callable[[Any], Any]) -> Scalar:
    read = reader.check
    return Scalar(lambda value: convert(read(value)), reader.blank)


# ---- lists, maps, objects --------------------------------------------------------------------------------------------


class ListOf:
    """An array, as a tuple."""

    __slots__ = ("blank", "item")

    def __init__(self, item: Reader) -> None:
        self.item = item
        self.blank: tuple[Any, ...] = ()

    def __call__(self, value: Any, document: Document) -> Any:
        if type(value) is not list:
            raise Refused(f"expected an array, got {show(value)}")
        return tuple(read_each(enumerate(value), self.item, document))


class Strings(ListOf):
    """An array of strings, in one step when nothing is wrong with any (a seccomp profile names hundreds)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(string)

    def __call__(self, value: Any, document: Document) -> Any:
        if type(value) is list and all(type(item) is str for item in value):
            together = "".join(value)
            if together.isascii() and "\0" not in together:
                return tuple(value)
        return super().__call__(value, document)


class MapOf:
    """An object with free names, as a read-only mapping."""

    __slots__ = ("blank", "item", "name")

    def __init__(self, item: Reader, name: Scalar = string) -> None:
        self.item = item
        self.name = name
        self.blank: Mapping[str, Any] = MappingProxyType({})

    def __call__(self, value: Any, document: Document) -> Any:
        if type(value) is not dict:
            raise Refused(f"expected an object, got {show(value)}")
        for name in value:
            try:
                self.name.check(name)
            except Refused as refused:
                document.problem(str(refused), name)
        return MappingProxyType(dict(zip(value, read_each(value.items(), self.item, document), strict=True)))


def read_each(items: Any, item: Reader, document: Document) -> list[Any]:
    """The values of (token, value) pairs, blanks for those with a problem."""
    result = []
    path = document.path
    for token, value in items:
        path.append(token)
        try:
            result.append(item(value, document))
        except Refused as refused:
            document.problem(str(refused))
            result.append(item.blank)
        path.pop()
    return result


def _given(value: Mapping[str, Any], folded: str) -> bool:
    return any(name.lower() == folded and member is not None for name, member in value.items())


class ObjectOf:
    """An object, as a record; names that are not in the table are ignored, null is the same as absent. As in Go's
    decoder, the case of names does not matter.

    ``fields`` maps the JSON names, in the order of the record's fields, to readers.
    """

    def __init__(self, record: Any, fields: Mapping[str, Reader], required: Sequence[str] = ()) -> None:
        self.record = record
        self.fields = fields
        self.required = required
        self.blank = record()
        self._make = record._make
        self._defaults = list(self.blank)
        self._slots = {name: (slot, reader) for slot, (name, reader) in enumerate(fields.items())}
        self._folded = {name.lower(): found for name, found in self._slots.items()}

    def __call__(self, value: Any, document: Document) -> Any:
        if type(value) is not dict:
            raise Refused(f"expected an object, got {show(value)}")
        slots = self._slots
        result = self._defaults.copy()
        path = document.path
        for name, member in value.items():
            found = slots.get(name) or self._folded.get(name.lower())
            if found is not None and member is not None:
                slot, reader = found
                path.append(name)
                try:
                    result[slot] = reader(member, document)
                except Refused as refused:
                    document.problem(str(refused))
                path.pop()
        for name in self.required:
            if value.get(name) is None and not _given(value, name.lower()):
                document.problem("is required", name)
        return self._make(result)
