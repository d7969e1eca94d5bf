"""containerd-shim-shimd-v2: what containerd runs for each container, ``start`` before its task and ``delete`` after
it. The daemon does the work: this finds or starts it.

Both are part of the time that a container takes, so nothing is imported that they do not need. containerd reads the
standard output and error of ``start`` as one: nothing but the answer may be printed, or one line and exit code 1.
"""

from __future__ import annotations

import os
import sys

from clients.containerd_shim import flags, places
from clients.containerd_shim.errors import LauncherError, UsageError

NAME = "containerd-shim-shimd-v2"


def main() -> int:
    """The console script; returns the exit code."""
    try:
        answer = _run(flags.parse(sys.argv[1:]))
    except (LauncherError, ValueError, OSError) as error:
        print(f"{NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    _write(answer)
    return 0


def _run(given: flags.Flags) -> bytes:
    if given.switches & {"v", "version"}:
        from clients.containerd_shim import info

        return info.version(NAME)
    if "info" in given.switches:
        from clients.containerd_shim import info

        return info.runtime_info(_read(), NAME)
    namespace = given.required("namespace")
    if given.action == "start":
        from clients.containerd_shim import start

        return start.start(given, namespace, places.find(), _read())
    if given.action == "delete":
        from clients.containerd_shim import delete

        return delete.delete(given, namespace, places.find())
    raise UsageError(f"unknown action {given.action!r}: this is for containerd to run, with start or delete")


def _read() -> bytes:
    """All of the standard input, which may be closed."""
    chunks = []
    try:
        while chunk := os.read(0, 1 << 16):
            chunks.append(chunk)
    except OSError:
        return b""
    return b"".join(chunks)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
