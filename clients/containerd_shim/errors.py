"""What ends the launcher, with one line to say."""

from __future__ import annotations


class LauncherError(Exception):
    """Base of the others."""


class UsageError(LauncherError):
    """What is wrong with the command line, or the environment."""


class Malformed(LauncherError):
    """These bytes are not a message."""


class CallFailed(LauncherError):
    """The daemon's answer is an error; ``code`` is gRPC's number."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.code = code
