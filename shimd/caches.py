"""``functools.lru_cache`` without what else its module loads: see ``shimd.contexts``."""

from __future__ import annotations

from shimd.typed import TYPE_CHECKING, Any, Callable

__all__ = ["lru_cache"]

if TYPE_CHECKING:
    from functools import lru_cache as lru_cache
else:
    from _functools import _lru_cache_wrapper

    def lru_cache(maxsize: int) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: _lru_cache_wrapper(function, maxsize, False, tuple)  # noqa: FBT003  (positional only)
