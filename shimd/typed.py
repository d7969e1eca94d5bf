"""What annotations need of ``typing``, ``types`` and ``collections.abc``, without loading them: with ``re`` behind the
first, and ``collections`` before the last, that takes 6 ms, and a command line starts for every call. Annotations are
not evaluated (PEP 563), so any value will do for the names of ``typing``.
"""

from __future__ import annotations

__all__ = [
    "TYPE_CHECKING",
    "AbstractContextManager",
    "Any",
    "Callable",
    "ClassVar",
    "Collection",
    "Iterable",
    "Iterator",
    "Mapping",
    "MappingProxyType",
    "MutableMapping",
    "NoReturn",
    "Protocol",
    "Sequence",
]

TYPE_CHECKING = False  # type checkers take it for True, whatever it says

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
    from contextlib import AbstractContextManager
    from types import MappingProxyType
    from typing import Any, ClassVar, NoReturn, Protocol
else:
    # What ``os`` has loaded.
    from _collections_abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence

    MappingProxyType = type(type.__dict__)
    AbstractContextManager = Any = ClassVar = NoReturn = object

    class Protocol:
        """Base of what only describes."""

        __slots__ = ()
