"""ttrpc's frames: ten bytes of header, then the payload (github.com/containerd/ttrpc, PROTOCOL.md).

    length u32 | stream id u32 | type u8 | flags u8 | payload          all big-endian

A payload is at most 4 MiB long. One that claims to be longer is read to its end and thrown away, so that the connection
stays usable: the sender is answered on its stream.
"""

from __future__ import annotations

import struct

from shimd.records import Record

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 * 1024 * 1024

REQUEST = 1
RESPONSE = 2
DATA = 3

REMOTE_CLOSED = 1
REMOTE_OPEN = 2
NO_DATA = 4


class Frame(Record):
    """``excess`` is the length of a payload that was too long; it is not here."""

    stream: int
    kind: int
    flags: int
    payload: bytes
    excess: int = 0


def pack(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    """The bytes of a frame; ``payload`` must not be longer than MAX_PAYLOAD."""
    return HEADER.pack(len(payload), stream, kind, flags) + payload


class FrameReader:
    """Cuts a stream of bytes into frames; holds one incomplete frame at most."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes of an overlong payload that are still to come

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. An overlong one is reported when its header is there."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        position = 0
        while len(buffer) - position >= HEADER.size:
            length, stream, kind, flags = HEADER.unpack_from(buffer, position)
            begin = position + HEADER.size
            end = begin + length
            if length > MAX_PAYLOAD:
                frames.append(Frame(stream, kind, flags, b"", length))
                self._skip = max(0, end - len(buffer))
            elif end > len(buffer):
                break
            else:
                with memoryview(buffer) as view:
                    frames.append(Frame(stream, kind, flags, bytes(view[begin:end])))
            position = min(end, len(buffer))
        del buffer[:position]
        return frames
