"""A word for the launcher about each containerd and namespace that the daemon knows, so that it need not ask.

The launcher (``clients/containerd_shim/containerd-shim-shimd-v2``) runs twice for each container, and reads this with a
shell: four lines, in a file named after containerd's gRPC address and the namespace. It holds as long as this process
lives: whoever reads it checks that we have the lock of the state directory open.
"""

from __future__ import annotations

import os
import re
import time

from shimd.events.forward import Addresses

_SUFFIX = ".known"
_FORM = ".form"  # which the launcher writes beside it
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_NAME_MAX = 255


class Known:
    """``lock`` is our descriptor of the lock file."""

    def __init__(self, folder: str, lock: int) -> None:
        self._folder = folder
        self._lock = lock

    def tell(self, addresses: Addresses, namespace: str, socket: str) -> None:
        """Nothing where the shell could misread it. Raises OSError."""
        name = f"{addresses.grpc}%{namespace}".replace("/", "%") + _SUFFIX
        words = (addresses.grpc, addresses.ttrpc, addresses.binary, namespace, socket)
        if len(name) > _NAME_MAX or not all(map(_PLAIN.fullmatch, words)):
            return
        booted = int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))
        lines = (f"{os.getpid()} {self._lock} {booted}", addresses.ttrpc, addresses.binary, f"unix://{socket}")
        temporary = os.path.join(self._folder, f"{name}.new")
        with open(temporary, "w") as file:
            file.write("".join(f"{line}\n" for line in lines))
        os.rename(temporary, os.path.join(self._folder, name))

    def withdraw(self) -> None:
        """Of this daemon, and of one that was killed."""
        for name in os.listdir(self._folder):
            if name.endswith((_SUFFIX, f"{_SUFFIX}.new", _FORM)):
                os.unlink(os.path.join(self._folder, name))
