"""Protobuf by hand, for the few messages that the launcher reads and writes: the library takes longer to import than
the launcher may run.

A message is read into ``{field number: [value, ...]}``: int for varint fields, bytes for strings, bytes and messages.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from clients.containerd_shim.errors import Malformed

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Fields = dict[int, list[int | bytes]]


def varint(value: int) -> bytes:
    """Negative numbers as int32 and int64 have them: ten bytes."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number(field: int, value: int) -> bytes:
    """An integer field; nothing for 0, which is the default."""
    return varint(field << 3 | VARINT) + varint(value) if value else b""


def text(field: int, value: str | bytes) -> bytes:
    """A string, bytes or message field; nothing for an empty one."""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | BYTES) + varint(len(data)) + data if data else b""


def read(data: bytes) -> Fields:
    """Raises Malformed."""
    fields: Fields = {}
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        value: int | bytes
        if key & 7 == VARINT:
            value, position = _read_varint(data, position)
        else:
            length, position = _length(data, position, key & 7)
            value = data[position : position + length]
            position += length
            if position > len(data):
                raise Malformed("a field ends beyond the message")
        if key >> 3 == 0:
            raise Malformed("field number 0")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _length(data: bytes, position: int, kind: int) -> tuple[int, int]:
    """Of the value at ``position``, and where it begins."""
    if kind == BYTES:
        return _read_varint(data, position)
    if kind == FIXED64:
        return 8, position
    if kind == FIXED32:
        return 4, position
    raise Malformed(f"wire type {kind}")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise Malformed("a number does not end")


def last_bytes(fields: Fields, field: int) -> bytes:
    """b"" when absent, or a number."""
    value = fields.get(field, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def last_text(fields: Fields, field: int) -> str:
    """Raises Malformed for what is not UTF-8."""
    try:
        return last_bytes(fields, field).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"field {field}: {error}") from error


def last_number(fields: Fields, field: int) -> int:
    """0 when absent, or not a number."""
    value = fields.get(field, [0])[-1]
    return value if isinstance(value, int) else 0
