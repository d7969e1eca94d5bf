"""What a launcher is asked for and what it returns, whichever process does the clone."""

from __future__ import annotations

from shimd.records import Record


class LaunchRequest(Record):
    """A process to make. ``stage`` and ``steps`` are plan.wire bytes, ``fds`` bind slots, ``hold`` names descriptors
    to keep from the launch on; ``exit_file`` is where the keeper writes the exit record ("" for none), ``cgroup_fd``
    a cgroup v2 directory to be born in.

    The descriptors stay the caller's.
    """

    name: str
    clone: int
    stage: bytes
    steps: bytes
    fds: tuple[tuple[str, int], ...]
    hold: tuple[tuple[str, int], ...] = ()
    exit_file: str = ""
    cgroup_fd: int = -1


class Launched(Record):
    """The pidfd is the caller's to close."""

    pid: int
    pidfd: int
