"""Whatever the bytes: reading gives a record or ``InvalidSpec``, and so does validating the record."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shimd.errors import InvalidSpec
from shimd.oci.read import read_process, read_resources, read_spec
from shimd.oci.validate import validate, validate_process, validate_resources
from tests.support.specs import containerd_default, docker_default_seccomp, every_field, runc_default


class Host(NamedTuple):
    cgroup_mode: str = "v2"
    apparmor: bool = False
    selinux: bool = False
    last_cap: int = 40
    euid: int = 1000
    seccomp_actions: tuple[str, ...] = ("allow", "errno")
    seccomp_flags: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ("mnt", "pid")


DOCUMENTS = (
    every_field(),
    runc_default(),
    containerd_default() | {"linux": {**containerd_default()["linux"], "seccomp": docker_default_seccomp()}},
)

numbers = st.one_of(
    st.integers(-3, 300),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
strings = st.one_of(
    st.text(st.characters(codec=None), max_size=20),  # with surrogates and NUL
    st.sampled_from(
        ["", "/", "/proc", "/proc/sys/..", "..", "bind", "idmap", "uid=5", "0-3", "9" * 5000, "SCMP_ACT_NOTIFY"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, strings),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
    max_leaves=5,
)


def consistent(data: bytes, read: Any, judge: Any) -> None:
    """The property: no other exception, and problems that can be shown."""
    try:
        judge(read(data), Host())
    except InvalidSpec as error:
        refusal = error
    else:
        return
    assert refusal.problems
    str(refusal).encode()
    assert all(problem.pointer == "" or problem.pointer.startswith("/") for problem in refusal.problems)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [place for key, child in items for place in [(node, key), *places(child)]]


@given(st.sampled_from(range(len(DOCUMENTS))), st.lists(st.tuples(st.integers(0), values), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_changed_members(which: int, changes: list[tuple[int, Any]]) -> None:
    document = json.loads(json.dumps(DOCUMENTS[which]))
    for number, value in changes:
        options = places(document)
        if options:
            container, key = options[number % len(options)]
            container[key] = value
    consistent(json.dumps(document).encode(), read_spec, validate)
    consistent(json.dumps(document.get("process")).encode(), read_process, validate_process)
    linux = document.get("linux")
    resources = linux.get("resources") if isinstance(linux, dict) else linux
    consistent(json.dumps(resources).encode(), read_resources, validate_resources)


@given(st.lists(st.integers(0), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_missing_members(numbers: list[int]) -> None:
    document = json.loads(json.dumps(DOCUMENTS[0]))
    for number in numbers:
        options = places(document)
        container, key = options[number % len(options)]
        del container[key]
    consistent(json.dumps(document).encode(), read_spec, validate)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes(data: bytes) -> None:
    consistent(data, read_spec, validate)


@given(st.sampled_from(DOCUMENTS), st.lists(st.tuples(st.integers(0), st.binary(max_size=3)), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes(document: dict[str, Any], damages: list[tuple[int, bytes]]) -> None:
    data = json.dumps(document).encode()
    for where, replacement in damages:
        at = where % len(data)
        data = data[:at] + replacement + data[at + 1 :]
    consistent(data, read_spec, validate)


@pytest.mark.parametrize("opening", [b"[", b'{"linux":', b'{"annotations":', b'{"mounts":[', b'{"x":[{"y":'])
@pytest.mark.parametrize("depth", [10, 500, 900, 1000, 5000, 200_000])
def test_deep_nesting(opening: bytes, depth: int) -> None:
    consistent(opening * depth, read_spec, validate)
    closing = opening[::-1].translate(bytes.maketrans(b"[{", b"]}"), b'"xylinuxanotsm:')
    consistent(opening * depth + b"1" + closing * depth, read_spec, validate)


@given(st.integers(0, 990))
@settings(max_examples=50, deadline=None)
def test_deep_nesting_from_a_deep_stack(depth: int) -> None:
    """The limit of recursion counts from where the caller stands."""

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
        else:
            consistent(b"[" * depth + b"]" * depth, read_spec, validate)

    descend(100)
