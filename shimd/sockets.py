"""Listening Unix sockets of the daemon's own."""

from __future__ import annotations

import contextlib
import os
import socket

from shimd.errors import FailedPrecondition


def listen(path: str) -> socket.socket:
    """A listener at ``path`` for our own user alone.

    Replaces a file that a daemon which is gone has left; raises FailedPrecondition when somebody listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as failed:
        failed.callback(listener.close)
        if answers(path):
            raise FailedPrecondition(f"somebody else listens on {path}")
        unlink(path)
        os.fchmod(listener.fileno(), 0o600)  # bind(2) gives the file the mode of the socket
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
        failed.pop_all()
    return listener


def answers(path: str) -> bool:
    """Whether somebody accepts connections at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def unlink(path: str) -> None:
    """Remove a file that may be missing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
