"""What containers may leave in the kernel: cgroups and BPF programs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from shimd.linux._libc import NR, buffer, syscall
from tests.support import wait

BPF_PROG_GET_NEXT_ID = 11

T = TypeVar("T")


def bpf_programs() -> set[int]:
    return set(_bpf_programs())


def _bpf_programs() -> Iterator[int]:
    program = 0
    while True:
        attr = buffer(struct.pack("=III", program, 0, 0))
        try:
            syscall(NR["bpf"], BPF_PROG_GET_NEXT_ID, attr, len(attr))
        except FileNotFoundError:
            return
        program = struct.unpack_from("=4xI", attr.raw)[0]
        yield program


def cgroups() -> set[str]:
    return {folder for folder, _, _ in os.walk("/sys/fs/cgroup")}


def settled(look: Callable[[], T], expected: T) -> T:
    """What ``look`` finds once it is as expected, or still when it should be: the kernel frees programs from a work
    queue, of which nobody is told.
    """
    deadline = time.monotonic() + wait.SECONDS
    while (found := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
