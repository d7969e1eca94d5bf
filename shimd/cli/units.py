"""Quantities as Go's libraries read them: durations of the standard library, sizes of Docker's go-units."""

from __future__ import annotations

from shimd.errors import InvalidArgument

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = (1 << 63) / 1e9
_SIZES = "kmgtp"
_LARGEST_SIZE = (1 << 63) - 1
_LARGEST_DIGITS = 20  # of a number with more the interpreter may refuse the conversion; it is too large all the same


def duration(text: str) -> float:
    """Seconds of "1h2m3.5s", "-1s" or "0". Raises InvalidArgument."""
    rest = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    sign = -1 if text.startswith("-") else 1
    if rest == "0":
        return 0.0
    total = 0.0
    while rest:
        digits = _leading(rest, "0123456789.")
        unit = _leading(rest[len(digits) :], "nuµμmsh")
        if not digits.strip(".") or digits.count(".") > 1 or unit not in _SECONDS:
            break
        total += float(digits) * _SECONDS[unit]
        rest = rest[len(digits) + len(unit) :]
    else:
        if text.strip("+-") and total <= _LONGEST:
            return sign * total
    raise InvalidArgument(f'invalid duration "{text}"')


def size(text: str) -> int:
    """Bytes of "512m", "1.5 GiB", "100" or "-1"; units are powers of 1024, in any case. Raises InvalidArgument."""
    if text == "-1":
        return -1
    number = _leading(text, "0123456789.")
    unit = text[len(number) :].removeprefix(" ").lower()
    unit = unit.removesuffix("b").removesuffix("i") if unit[:1] in tuple(_SIZES) else unit.removesuffix("b")
    if number.strip(".") and number.count(".") < 2 and (not unit or (len(unit) == 1 and unit in _SIZES)):
        power = 0 if not unit else _SIZES.index(unit) + 1
        value = float(number) * 1024**power if "." in number else int(number[:_LARGEST_DIGITS]) * 1024**power
        if value <= _LARGEST_SIZE:
            return int(value)
    raise InvalidArgument(f"invalid size: '{text}'")


def _leading(text: str, characters: str) -> str:
    return text[: len(text) - len(text.lstrip(characters))]
