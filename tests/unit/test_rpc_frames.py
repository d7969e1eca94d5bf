from __future__ import annotations

import pytest

from shimd.rpc.frames import HEADER, MAX_PAYLOAD, REQUEST, RESPONSE, Frame, FrameReader, pack


def test_the_layout_of_a_frame() -> None:
    assert pack(0x01020304, REQUEST, b"ab", 3) == b"\0\0\0\x02\x01\x02\x03\x04\x01\x03ab"


@pytest.mark.parametrize("chunk", [1, 2, 9, 10, 11, 13, 1000])
def test_frames_come_whole_however_they_are_cut(chunk: int) -> None:
    frames = [Frame(1, REQUEST, 0, b"first"), Frame(3, RESPONSE, 2, b""), Frame(0xFFFFFFFF, 9, 255, bytes(range(256)))]
    data = b"".join(pack(f.stream, f.kind, f.payload, f.flags) for f in frames)
    reader = FrameReader()
    found = [frame for at in range(0, len(data), chunk) for frame in reader.feed(data[at : at + chunk])]
    assert found == frames


def test_the_longest_payload() -> None:
    payload = bytes(MAX_PAYLOAD)
    reader = FrameReader()
    assert reader.feed(pack(1, REQUEST, payload)[:-1]) == []
    assert reader.feed(b"\0") == [Frame(1, REQUEST, 0, payload)]


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 5_000_000, 9_000_000])
@pytest.mark.parametrize("chunk", [65536, 1_000_001, 20_000_000])
def test_what_is_too_long_is_skipped(length: int, chunk: int) -> None:
    data = HEADER.pack(length, 5, REQUEST, 0) + bytes(length) + pack(7, REQUEST, b"next")
    reader = FrameReader()
    found = [frame for at in range(0, len(data), chunk) for frame in reader.feed(data[at : at + chunk])]
    assert found == [Frame(5, REQUEST, 0, b"", length), Frame(7, REQUEST, 0, b"next")]


def test_what_is_too_long_is_not_kept() -> None:
    reader = FrameReader()
    assert reader.feed(HEADER.pack(0xFFFFFFFF, 1, REQUEST, 0)) == [Frame(1, REQUEST, 0, b"", 0xFFFFFFFF)]
    for _ in range(100):
        assert reader.feed(bytes(1_000_000)) == []
    assert len(reader._buffer) == 0
