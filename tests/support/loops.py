"""Run a coroutine test on asyncio's event loop and on uvloop's, which differ in what descriptors they can wait for."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
SECONDS = 60.0

uvloop.new_event_loop().close()  # libuv keeps a pipe of its own from the first loop on, which is no leak

Test = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(test: Test) -> Callable[..., None]:
    """Errors that a callback raises, which a loop only logs, fail the test too, and so do tasks left behind."""

    def run(*, loop_name: str, **fixtures: object) -> None:
        errors: list[dict[str, Any]] = []

        async def checked() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
            await asyncio.wait_for(test(**fixtures), SECONDS)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"the test left tasks behind: {left}"

        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(checked())
        assert not errors, errors

    signature = inspect.signature(test)
    own = inspect.Parameter("loop_name", inspect.Parameter.KEYWORD_ONLY)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = inspect.Signature([*parameters, own])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.pytestmark = list(getattr(test, "pytestmark", []))  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop_name", LOOPS)(run)
