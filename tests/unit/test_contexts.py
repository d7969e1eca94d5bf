"""Our context managers are those of ``contextlib``, which the same tests hold for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from shimd import contexts


@pytest.fixture(params=[contexts, contextlib], ids=lambda module: module.__name__)
def lib(request: pytest.FixtureRequest) -> Any:
    return request.param


class Thing:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def fail(error: Exception) -> None:
    raise error


def test_suppress(lib: Any) -> None:
    with lib.suppress(KeyError, OSError):
        fail(FileNotFoundError())
    with lib.suppress(KeyError):
        pass
    with pytest.raises(ValueError, match="other"), lib.suppress(KeyError):
        raise ValueError("other")


def test_closing(lib: Any) -> None:
    thing = Thing()
    with lib.closing(thing) as same:
        assert same is thing
        assert thing.closed == 0
    assert thing.closed == 1
    with pytest.raises(KeyError), lib.closing(thing):
        raise KeyError
    assert thing.closed == 2


def test_generator_runs_to_its_end(lib: Any) -> None:
    steps = []

    def managed(name: str, *, last: str) -> Iterator[str]:
        steps.append("enter")
        try:
            yield name
        finally:
            steps.append(last)

    with lib.contextmanager(managed)("it", last="leave") as value:
        steps.append(value)
    assert steps == ["enter", "it", "leave"]
    with pytest.raises(KeyError), lib.contextmanager(managed)("it", last="leave"):
        raise KeyError
    assert steps[3:] == ["enter", "leave"]


def test_generator_may_take_the_exception_or_raise_another(lib: Any) -> None:
    def taking() -> Iterator[None]:
        with contextlib.suppress(KeyError):
            yield

    def changing() -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise ValueError("changed") from error

    with lib.contextmanager(taking)():
        fail(KeyError())
    with pytest.raises(ValueError, match="changed") as raised, lib.contextmanager(changing)():
        raise KeyError
    assert isinstance(raised.value.__cause__, KeyError)


def test_generator_yields_once(lib: Any) -> None:
    def twice() -> Iterator[int]:
        yield 1
        yield 2

    with pytest.raises(RuntimeError), lib.contextmanager(twice)():
        pass


def test_stack_is_left_from_its_end_whatever_fails(lib: Any) -> None:
    left: list[object] = []

    def managed() -> Iterator[str]:
        try:
            yield "value"
        finally:
            left.append("managed")

    def note_and_fail(text: str) -> None:
        left.append(text)
        raise ValueError(text)

    stack = lib.ExitStack()
    stack.callback(note_and_fail, "first")
    stack.callback(note_and_fail, "second")
    assert stack.enter_context(lib.contextmanager(managed)()) == "value"
    stack.callback(left.append, 4)
    with pytest.raises(ValueError, match="first") as raised, stack:
        raise KeyError
    assert left == [4, "managed", "second", "first"]
    assert isinstance(raised.value.__context__, ValueError)
    assert isinstance(raised.value.__context__.__context__, KeyError)


def test_stack_passes_on_what_nobody_takes(lib: Any) -> None:
    stack = lib.ExitStack()
    stack.callback(len, "x")
    with pytest.raises(KeyError), stack:
        raise KeyError
    with lib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyError))
        raise KeyError


def test_stack_that_is_emptied_does_nothing(lib: Any) -> None:
    left: list[int] = []
    with lib.ExitStack() as stack:
        stack.callback(left.append, 1)
        kept = stack.pop_all()
    assert left == []
    with kept:
        pass
    assert left == [1]
