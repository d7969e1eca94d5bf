from __future__ import annotations

from typing import Any

import pytest
from jeepney.low_level import Endianness, parse_signature

from shimd.cgroups.gvariant import parse


@pytest.mark.parametrize(
    ("text", "signature", "value"),
    [
        ("true", "b", True),
        ("boolean false", "b", False),
        ("5", "i", 5),
        ("-5", "i", -5),
        ("+5", "i", 5),
        ("0x1F", "i", 31),
        ("017", "i", 15),
        ("-0x10", "i", -16),
        ("byte 0xff", "y", 255),
        ("int16 -1", "n", -1),
        ("uint16 1", "q", 1),
        ("int32 1", "i", 1),
        ("uint32 1", "u", 1),
        ("int64 -1", "x", -1),
        ("uint64 18446744073709551615", "t", 2**64 - 1),
        ("@t 5", "t", 5),
        ("1.5", "d", 1.5),
        ("1e3", "d", 1000.0),
        ("-.5", "d", -0.5),
        ("double 3", "d", 3.0),
        ("inf", "d", float("inf")),
        ("'a'", "s", "a"),
        ('"a\'b"', "s", "a'b"),
        (r"'a\'b\n\u00e9\U0001F600'", "s", "a'b\né😀"),
        ("objectpath '/a'", "o", "/a"),
        ("@o '/a'", "o", "/a"),
        ("signature 'as'", "g", "as"),
        ("b'ab'", "ay", b"ab\0"),
        (r"b'\001'", "ay", b"\x01\0"),
        ("['a', 'b']", "as", ["a", "b"]),
        ("[]", None, "needs a type"),
        ("@as []", "as", []),
        ("[1, 2]", "ai", [1, 2]),
        ("[uint32 1, 2]", "au", [1, 2]),
        ("[1, uint32 2]", "au", [1, 2]),
        ("[1, 2.5]", "ad", [1.0, 2.5]),
        ("@ay [1, 255]", "ay", b"\x01\xff"),
        ("[byte 1, 2]", "ay", b"\x01\x02"),
        ("[[1], [2]]", "aai", [[1], [2]]),
        ("('/dev/null', 'rw')", "(ss)", ("/dev/null", "rw")),
        ("[('/dev/null', 'rw')]", "a(ss)", [("/dev/null", "rw")]),
        ("[('/dev/sda', uint64 5)]", "a(st)", [("/dev/sda", 5)]),
        ("@a(st) [('/dev/sda', 5)]", "a(st)", [("/dev/sda", 5)]),
        ("(1,)", "(i)", (1,)),
        ("{'a': 1}", "a{si}", {"a": 1}),
        ("@a{sv} {'a': <1>}", "a{sv}", {"a": ("i", 1)}),
        ("@a{sv} {}", "a{sv}", {}),
        ("<'x'>", "v", ("s", "x")),
        (" [ 1 ,2 ] ", "ai", [1, 2]),
    ],
)
def test_values(text: str, signature: str | None, value: Any) -> None:
    if signature is None:
        with pytest.raises(ValueError, match=value):
            parse(text)
        return
    assert parse(text) == (signature, value)
    parse_signature(list("v")).serialise(parse(text), 0, Endianness.little)  # the library takes it


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the value is missing"),
        ("   ", "the value is missing"),
        ("bar", "unexpected 'bar'"),
        ("'a", "unexpected"),
        ("1 2", "unexpected '2' after the value"),
        ("[1, 'a']", "'a' is not of type i"),
        ("[1 2]", "expected ','"),
        ("[1", "expected ','"),
        ("(1", "expected ','"),
        ("()", "a tuple is not of type"),
        ("{1}", "expected ':'"),
        ("<1", "expected '>'"),
        ("byte 256", "256 is out of the range of type y"),
        ("uint32 -1", "out of the range"),
        ("3000000000", "out of the range of type i"),
        ("int32 1.5", "1.5 is not of type i"),
        ("uint32 'a'", "is not of type u"),
        ("string 1", "1 is not of type s"),
        ("@as 'a'", "is not of type as"),
        ("@s true", "true is not of type s"),
        ("@asx []", "'asx' is not one type"),
        ("@a []", "'a' is not one type"),
        ("@(s ['a']", "is not one type"),
        ("@mi 1", "is not one type"),
        ("@h 1", "is not one type"),
        ("handle 1", "unexpected 'handle'"),
        ("just 1", "unexpected 'just'"),
        ("{}", "needs a type"),
        ("@i uint32 1", "type u where i is wanted"),
        ("08", "invalid literal"),
        ("[" * 100, "nested too deeply"),
    ],
)
def test_what_is_no_value(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)
