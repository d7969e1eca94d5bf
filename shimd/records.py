"""Records: to a user and to the type checker ``typing.NamedTuple``, without its price when a module is loaded.

``NamedTuple`` compiles a constructor for each class, which takes 0.1 ms: a command line that loads 150 of them starts
noticeably later. Records share one constructor and have the same field descriptors.
"""

from __future__ import annotations

from _collections import _tuplegetter  # type: ignore[import-not-found]  # the C half of collections has no stub

from shimd.typed import TYPE_CHECKING, Any

__all__ = ["Record"]

MOST_FIELDS = 40

if TYPE_CHECKING:
    from typing import NamedTuple as Record
else:

    class _RecordType(type):
        """Makes classes that derive from tuple alone and have the methods themselves: one base fewer in which to look
        for each of 90 special methods, and a class whose class is ``type``, take half the time.
        """

        def __new__(mcs, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
            if not bases:
                return type.__new__(mcs, name, (tuple,), members)
            fields = tuple(members.get("__annotations__", ()))
            if len(fields) > MOST_FIELDS:
                raise TypeError(f"{name}: a record has no more than {MOST_FIELDS} fields")
            members["_fields"] = members["__match_args__"] = fields
            members["_field_defaults"] = {field: members[field] for field in fields if field in members}
            members.update(zip(fields, _GETTERS, strict=False))
            return type(name, (tuple,), {**_METHODS, **members})

    class Record(metaclass=_RecordType):
        """Base of a record class; its annotated names are the fields, in order, with their defaults. A subclass of such
        a class adds methods only, and says ``__slots__ = ()``.
        """

        __slots__ = ()

        def __new__(cls, *values: object, **named: object) -> Record:
            if named or len(values) != len(cls._fields):
                values = _complete(cls, values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values: Any) -> Record:
            return cls(*values)

        def _replace(self, **changes: object) -> Record:
            fields = zip(self._fields, self, strict=True)
            made = tuple.__new__(type(self), [changes.pop(field, old) for field, old in fields])
            if changes:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(changes)}")
            return made

        def _asdict(self) -> dict[str, object]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def __getnewargs__(self) -> tuple[object, ...]:
            return tuple(self)

    _GETTERS = [_tuplegetter(index, None) for index in range(MOST_FIELDS)]
    _METHODS = {name: value for name, value in vars(Record).items() if name not in ("__doc__", "__module__")}

    def _complete(cls: Any, values: tuple[object, ...], named: dict[str, object]) -> list[object]:
        """The fields in order, from arguments by position, by name, and defaults."""
        if len(values) > len(cls._fields):
            raise TypeError(f"{cls.__name__} takes {len(cls._fields)} values, {len(values)} were given")
        rest = cls._fields[len(values) :]
        given = cls._field_defaults | named
        try:
            complete = [*values, *[given[field] for field in rest]]
        except KeyError as missing:
            raise TypeError(f"{cls.__name__} needs {missing}") from None
        if unknown := named.keys() - set(rest):
            raise TypeError(f"{cls.__name__} does not take {', '.join(sorted(unknown))}")
        return complete
