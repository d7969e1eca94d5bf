"""The program that holds the namespaces of a pod: it ignores SIGCHLD, so that the kernel reaps what a shared process
namespace leaves to its first process, and waits for signals for ever.

A pod's namespaces need a process: a pid namespace ends with its first one, and containerd names the others by
/proc/PID/ns. This one is a page of memory, where the interpreter would be hundreds, and has nothing that a container
that gets at it could use. Its image is a few instructions behind the two headers that the kernel asks for (elf(5)).
"""

from __future__ import annotations

import os
import struct

from shimd.errors import Unimplemented

_BASE = 0x400000
_ALIGNMENT = 0x10000  # the largest page size of these machines
_HEADERS = 64 + 56
_EXECUTABLE, _CURRENT, _PT_LOAD, _READ_EXECUTE = 2, 1, 1, 5

# struct sigaction of rt_sigaction(2): SIG_IGN, no flags, no restorer, an empty mask.
_IGNORE = struct.pack("<QQQQ", 1, 0, 0, 0)

_X86_64 = bytes.fromhex(
    "bf 11 00 00 00"  # mov $SIGCHLD, %edi
    "48 8d 35 1c 00 00 00"  # lea ignore(%rip), %rsi
    "31 d2"  # xor %edx, %edx
    "41 ba 08 00 00 00"  # mov $8, %r10d
    "b8 0d 00 00 00"  # mov $rt_sigaction, %eax
    "0f 05"  # syscall
    "b8 22 00 00 00"  # again: mov $pause, %eax
    "0f 05"  # syscall
    "eb f7"  # jmp again
    "90 90 90 90"
)
_AARCH64 = struct.pack(
    "<16I",
    0xD2800220,  # mov x0, #SIGCHLD
    0x100001E1,  # adr x1, ignore
    0xD2800002,  # mov x2, #0
    0xD2800103,  # mov x3, #8
    0xD28010C8,  # mov x8, #rt_sigaction
    0xD4000001,  # svc #0
    0xD2800000,  # again: mov x0, #0
    0xD2800001,  # mov x1, #0
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD2800004,  # mov x4, #0
    0xD2800928,  # mov x8, #ppoll
    0xD4000001,  # svc #0
    0x17FFFFF9,  # b again
    0xD503201F,  # nop
    0xD503201F,  # nop
)
# Code and the machine's number in the header.
_MACHINES = {"x86_64": (_X86_64, 62), "aarch64": (_AARCH64, 183)}


def image(machine: str = "") -> bytes:
    """The program's file, for this machine; raises Unimplemented for one that is not known."""
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise Unimplemented(f"sandboxes are not supported on {machine}; pods with a pause container are")
    code, number = _MACHINES[machine]
    size = _HEADERS + len(code) + len(_IGNORE)
    header = b"\x7fELF" + bytes((2, 1, _CURRENT)) + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", _EXECUTABLE, number, _CURRENT, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", _PT_LOAD, _READ_EXECUTE, 0, _BASE, _BASE, size, size, _ALIGNMENT)
    return header + segment + code + _IGNORE
