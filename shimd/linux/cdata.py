"""What system calls need of ``ctypes``, from the C half of it: the other half makes a class for each C type there is,
and loads more, which would cost every command line a millisecond.
"""

from __future__ import annotations

import _ctypes

from shimd.typed import TYPE_CHECKING, Any, Callable

__all__ = ["Memory", "Number", "address", "errno", "foreign", "memory", "symbol"]

if TYPE_CHECKING:
    from ctypes import Array, c_char, c_int, c_long, c_void_p

    Memory = Array[c_char]
    Number = c_int
    _Char, _Long, _Pointer = c_char, c_long, c_void_p
else:

    class _Char(_ctypes._SimpleCData):
        _type_ = "c"

    class Number(_ctypes._SimpleCData):
        """An ``int`` of C, at ``value``."""

        _type_ = "i"

    class _Long(_ctypes._SimpleCData):
        _type_ = "l"

    class _Pointer(_ctypes._SimpleCData):
        """Also made from an int, bytes or None."""

        _type_ = "P"

    Memory = _ctypes.Array

_FUNCFLAG_CDECL = 0x1
_FUNCFLAG_PYTHONAPI = 0x4
_FUNCFLAG_USE_ERRNO = 0x8

_handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # as in dlopen(3): the program itself


class _Released(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _Held(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO | _FUNCFLAG_PYTHONAPI
    _restype_ = _Long


address: Callable[[Any], int] = _ctypes.addressof
errno: Callable[[], int] = _ctypes.get_errno


def memory(size: int, at: int = 0) -> Memory:
    """Zeroes; or what is at that address, which has to stay there."""
    kind: Any = _Char * size
    made: Memory = kind.from_address(at) if at else kind()
    return made


def symbol(name: str) -> int:
    """The address of a function of the program or of a library that it was linked with."""
    found: int = _ctypes.dlsym(_handle, name)
    return found


def foreign(at: int, arguments: int, *, held: bool) -> Callable[..., int]:
    """The C function at that address, of so many arguments of the size of a register, with a ``long`` as its result;
    ``held``: it keeps the GIL.
    """
    function = _Held(at) if held else _Released(at)
    function.argtypes = (_Pointer,) * arguments
    return function
