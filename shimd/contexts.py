"""The context managers of ``contextlib`` that the runtime uses, without the modules behind it: together they take as
long to load as a dozen of ours, and a command line starts for every call. To a type checker they are the originals.
"""

from __future__ import annotations

from shimd.typed import TYPE_CHECKING, Any, Callable

__all__ = ["ExitStack", "closing", "contextmanager", "suppress"]

if TYPE_CHECKING:
    from contextlib import ExitStack as ExitStack
    from contextlib import closing as closing
    from contextlib import contextmanager as contextmanager
    from contextlib import suppress as suppress
else:

    class suppress:
        __slots__ = ("_kinds",)

        def __init__(self, *kinds: type[BaseException]) -> None:
            self._kinds = kinds

        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            return kind is not None and issubclass(kind, self._kinds)

    class closing:
        __slots__ = ("_thing",)

        def __init__(self, thing: Any) -> None:
            self._thing = thing

        def __enter__(self) -> Any:
            return self._thing

        def __exit__(self, *_: object) -> None:
            self._thing.close()

    class _Generated:
        """Of a generator that yields once. Unlike the original's, its body may not raise StopIteration."""

        __slots__ = ("_generator",)

        def __init__(self, generator: Any) -> None:
            self._generator = generator

        def __enter__(self) -> Any:
            return next(self._generator)

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            try:
                if error is None:
                    next(self._generator)
                else:
                    self._generator.throw(error)
            except StopIteration:
                return True
            except BaseException as raised:
                if raised is not error:
                    raise
                error.__traceback__ = trace
                return False
            raise RuntimeError("the generator yields twice")

    def contextmanager(function: Callable[..., Any]) -> Callable[..., _Generated]:
        def make(*args: Any, **named: Any) -> _Generated:
            return _Generated(function(*args, **named))

        return make

    class ExitStack:
        __slots__ = ("_exits",)

        def __init__(self) -> None:
            self._exits: list[Callable[..., Any]] = []

        def enter_context(self, manager: Any) -> Any:
            value = manager.__enter__()
            self._exits.append(manager.__exit__)
            return value

        def callback(self, function: Callable[..., Any], *args: Any) -> None:
            def leave(*_: object) -> None:
                function(*args)

            self._exits.append(leave)

        def pop_all(self) -> ExitStack:
            other = ExitStack()
            other._exits, self._exits = self._exits, []
            return other

        def __enter__(self) -> ExitStack:
            return self

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            """All are left, whatever one of them raises; the last failure is raised."""
            last = error
            while self._exits:
                try:
                    if self._exits.pop()(type(last) if last else None, last, last.__traceback__ if last else None):
                        last = None
                except BaseException as raised:  # noqa: BLE001  (raised again below)
                    if raised.__context__ is error and raised is not last:
                        raised.__context__ = last
                    last = raised
            if last is error:
                return False
            if last is None:
                return True
            context = last.__context__
            try:
                raise last
            finally:
                last.__context__ = context  # not what the with statement handles
