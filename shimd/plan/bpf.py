"""Classic BPF, as far as a prefix to a seccomp filter needs it: which system calls look as if they did not exist.

A profile is an allow-list of the calls that its author knew. For a newer call the default action, usually EPERM, would
reach a C library that falls back to older calls only on ENOSYS. So every call with a number above the highest one that
the profile names for its architecture gets ENOSYS; all others go on to the filter behind.

The filter sees ``struct seccomp_data``: nr at 0, arch at 4. x32 shares its arch value with x86_64 and has bit 30 set
in nr. On s390 the number 0 (setup, long gone) stands for any call that the kernel does not know. ARM has a few calls of
its own far above the others, which say nothing about how new the profile is.
"""

from __future__ import annotations

import struct
from errno import ENOSYS

from shimd.typed import Mapping

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

LD_W_ABS = 0x20
JMP_JA = 0x05
JMP_JEQ = 0x15
JMP_JGT = 0x25
JMP_JGE = 0x35
JMP_JSET = 0x45
RET_K = 0x06

NR_OFFSET = 0
ARCH_OFFSET = 4
X32_BIT = 1 << 30
ARM_PRIVATE = 0x0F0000
RET_ENOSYS = 0x00050000 | ENOSYS

ARCH_X86_64 = 0xC000003E
ARCH_X32 = 0x4000003E
ARCH_ARM = 0x40000028
ARCHES_S390 = (0x00000016, 0x80000016)

Row = tuple[int, int, int, int]


def enosys_prefix(highest: Mapping[int, int]) -> bytes:
    """``highest``: libseccomp's architecture token -> the highest number that the profile names, above 0.

    Every section ends by itself, in ENOSYS or in a jump to the end of the prefix, so that no conditional jump comes
    near its reach of 255 instructions.
    """
    sections: list[tuple[int, list[Row]]] = []
    for arch, number in sorted(highest.items()):
        if arch == ARCH_X32:
            continue
        sections.append(
            (arch, _x86_section(number, highest.get(ARCH_X32)) if arch == ARCH_X86_64 else _section(arch, number))
        )
    if ARCH_X32 in highest and ARCH_X86_64 not in highest:
        sections.append((ARCH_X86_64, _x86_section(None, highest[ARCH_X32])))
    rows: list[Row] = [(LD_W_ABS, 0, 0, ARCH_OFFSET)] if sections else []
    for arch, section in sections:
        rows.append((JMP_JEQ, 0, len(section), arch))
        rows += section
    # What a section does not refuse jumps here; marked by a jump without a length.
    return b"".join(
        INSTRUCTION.pack(code, jt, jf, len(rows) - position - 1 if code == JMP_JA else k)
        for position, (code, jt, jf, k) in enumerate(rows)
    )


_TO_FILTER: Row = (JMP_JA, 0, 0, 0)


def _refuse_above(number: int) -> list[Row]:
    return [(JMP_JGT, 0, 1, number), (RET_K, 0, 0, RET_ENOSYS), _TO_FILTER]


def _section(arch: int, number: int) -> list[Row]:
    rows: list[Row] = [(LD_W_ABS, 0, 0, NR_OFFSET)]
    if arch in ARCHES_S390:
        rows += [(JMP_JEQ, 0, 1, 0), (RET_K, 0, 0, RET_ENOSYS)]
    if arch == ARCH_ARM:
        rows += [(JMP_JGE, 0, 1, ARM_PRIVATE), _TO_FILTER]
    return rows + _refuse_above(number)


def _x86_section(number: int | None, x32_number: int | None) -> list[Row]:
    """A mode that the profile does not have is left to the filter."""
    plain = [_TO_FILTER] if number is None else _refuse_above(number)
    x32 = [_TO_FILTER] if x32_number is None else _refuse_above(x32_number)
    return [(LD_W_ABS, 0, 0, NR_OFFSET), (JMP_JSET, len(plain), 0, X32_BIT), *plain, *x32]
