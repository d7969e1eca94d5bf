"""Loop devices, loop(4): attached in one step (LOOP_CONFIGURE) and freed by the kernel after the last unmount
(autoclear).
"""

from __future__ import annotations

import errno
import os
import struct
from fcntl import ioctl

LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q8Q")
_ATTEMPTS = 64


def attach(image: str, *, read_only: bool, direct_io: bool = False) -> tuple[str, int]:
    """("/dev/loopN", descriptor). The device is freed when the descriptor is closed and nothing has it mounted."""
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if read_only else 0) | (LO_FLAGS_DIRECT_IO if direct_io else 0)
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    backing = os.open(image, mode)
    try:
        for _ in range(_ATTEMPTS):
            device = _free_device()
            fd = os.open(device, mode)
            try:
                ioctl(fd, LOOP_CONFIGURE, _config(backing, flags, image))
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # EBUSY: somebody else took the free device first
                    raise OSError(error.errno, error.strerror, image) from None
            else:
                return device, fd
        raise OSError(errno.EBUSY, "no free loop device", image)
    finally:
        os.close(backing)


def detach(fd: int) -> None:
    """Now, or at the last close when the device is in use."""
    ioctl(fd, LOOP_CLR_FD)


def _free_device() -> str:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"/dev/loop{ioctl(control, LOOP_CTL_GET_FREE)}"
    finally:
        os.close(control)


def _config(backing: int, flags: int, image: str) -> bytes:
    name = os.fsencode(image)[:63]
    return _CONFIG.pack(backing, 0, *(0,) * 5, 0, 0, 0, flags, name, b"", b"", *(0,) * 10)
