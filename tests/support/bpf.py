"""A machine for classic BPF with the instructions that seccomp allows (kernel: net/core/filter.c)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ARCH_X86_64 = 0xC000003E
ARCH_I386 = 0x40000003
X32 = 1 << 30

_INSTRUCTION = struct.Struct("=HBBI")


def run(program: bytes, number: int, args: Sequence[int] = (), *, arch: int = ARCH_X86_64) -> int:
    """The filter's return value for a system call."""
    padded = [*args, *[0] * (6 - len(args))]
    return execute(list(_INSTRUCTION.iter_unpack(program)), struct.pack("=iIQ6Q", number, arch, 0, *padded))


def execute(program: Sequence[tuple[int, int, int, int]], data: bytes) -> int:
    position = accumulator = index = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = program[position]
        position += 1
        kind = code & 0x07
        if code == 0x20:  # ld [k]
            accumulator = int.from_bytes(data[k : k + 4], "little")
        elif code == 0x00:  # ld #k
            accumulator = k
        elif code == 0x60:  # ld M[k]
            accumulator = memory[k]
        elif code == 0x02:  # st M[k]
            memory[k] = accumulator
        elif code == 0x07:  # tax
            index = accumulator
        elif code == 0x87:  # txa
            accumulator = index
        elif code == 0x54:  # and #k
            accumulator &= k
        elif code == 0x06:  # ret #k
            return k
        elif code == 0x05:  # ja
            position += k
        elif kind == 0x05:
            position += jt if _compare(code & 0xF0, accumulator, k) else jf
        else:
            raise AssertionError(f"instruction {code:#x} at {position - 1}")


def _compare(operation: int, value: int, k: int) -> bool:
    match operation:
        case 0x10:
            return value == k
        case 0x20:
            return value > k
        case 0x30:
            return value >= k
        case 0x40:
            return bool(value & k)
    raise AssertionError(f"jump {operation:#x}")
