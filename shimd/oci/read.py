"""From the bytes of a document to a model record, or to every problem that the document has.

Reading and the rules that need nothing but the document (``shimd.oci.rules``) are one step, so that a person sees all
that is wrong at once. What depends on the host follows in ``shimd.oci.validate``. As in Go's decoder the last of two
equal names wins, the case of names does not matter, null is the same as absent, and 1.0 is not an integer.
"""

from __future__ import annotations

from shimd import jsontext
from shimd.caches import lru_cache
from shimd.errors import InvalidSpec, Problem
from shimd.oci import rules, tables
from shimd.oci.fields import MAX_PROBLEMS, Document, ObjectOf, Refused
from shimd.oci.model import Process, Resources, Spec
from shimd.typed import Any, Iterable

MAX_BYTES = 4 << 20
CACHED_BYTES = 64 << 10  # larger documents are not worth the memory
CACHED_DOCUMENTS = 32


def read_spec(data: bytes) -> Spec:
    """config.json; raises ``InvalidSpec``."""
    spec: Spec = _read(data, tables.SPEC, rules.of_spec, "config.json")
    return spec


def read_process(data: bytes) -> Process:
    """The process object that ``exec`` takes; raises ``InvalidSpec``."""
    process: Process = _read(data, tables.PROCESS, rules.of_process, "process")
    return process


def read_resources(data: bytes) -> Resources:
    """The resources object that ``update`` takes; raises ``InvalidSpec``."""
    resources: Resources = _read(data, tables.RESOURCES, rules.of_resources, "resources")
    return resources


_cached = lru_cache(CACHED_DOCUMENTS)(read_spec)


def read_spec_cached(data: bytes) -> Spec:
    """As ``read_spec``; equal bytes give the same record again."""
    return _cached(data) if len(data) <= CACHED_BYTES else read_spec(data)


def _read(data: bytes, table: ObjectOf, check: rules.Check, title: str) -> Any:
    raw = _decode(data, title)
    document = Document()
    try:
        record = table(raw, document)
    except Refused as refused:
        raise InvalidSpec([Problem("", str(refused))], document=title) from None
    problems = document.problems
    if not document.unlisted:
        problems = problems + check(record, problems)
    if problems:
        raise InvalidSpec(_listed(raw, problems, document.unlisted), document=title)
    return record


def _decode(data: bytes, title: str) -> Any:
    if len(data) > MAX_BYTES:
        raise InvalidSpec([Problem("", f"{len(data)} bytes are more than {MAX_BYTES}")], document=title)
    try:
        return jsontext.loads(data.decode("utf-8"))
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: {error.reason} at byte {error.start}"
    except ValueError as error:
        reason = f"not JSON: {error}"
    raise InvalidSpec([Problem("", reason)], document=title)


def _listed(raw: Any, problems: Iterable[Problem], unlisted: int) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: _position(raw, problem.pointer))
    unlisted += len(ordered[MAX_PROBLEMS:])
    more = [Problem("", f"and {unlisted} more problems")] if unlisted else []
    return ordered[:MAX_PROBLEMS] + more


def _position(raw: Any, pointer: str) -> list[int]:
    """Where a pointer's value stands in the document, for sorting; a missing member comes after its siblings."""
    position = []
    for escaped in pointer.split("/")[1:]:
        token = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(raw, dict):
            position.append(list(raw).index(token) if token in raw else len(raw))
            raw = raw.get(token)
        elif isinstance(raw, list) and token.isdigit():
            position.append(int(token))
            raw = raw[int(token)] if int(token) < len(raw) else None
    return position
