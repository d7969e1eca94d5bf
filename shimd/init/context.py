"""What the operations of a plan share while they run: the slots, the root descriptor, the channel to the runtime."""

from __future__ import annotations

import os
from _socket import socket
from errno import EPIPE

from shimd.init.handshake import (
    GO,
    MAPPED,
    Failure,
    encode_failure,
    encode_id_map,
    encode_listener,
    encode_sync,
    encode_warning,
)
from shimd.linux import fdpass
from shimd.linux.proc import open_verified_procfs


class StepFailed(Exception):
    """An operation failed in a way that its OSError alone does not tell: what was attempted, errno or 0, the text."""

    def __init__(self, attempt: str, errno: int, text: str = "") -> None:
        super().__init__(attempt)
        self.attempt = attempt
        self.errno = errno
        self.text = text or os.strerror(errno)

    @classmethod
    def of(cls, attempt: str, error: OSError) -> StepFailed:
        """The attempt names the object, so the error's own path is left out."""
        return cls(attempt, error.errno or 0, error.strerror or str(error))


class Aborted(Exception):
    """The runtime gave up or is gone; nobody is left to be told why init ends."""


class Context:
    """``root`` is the O_PATH descriptor that container paths are resolved in, -1 before there is a container root.

    ``staged``: the process is a stage, whose session is not that of the program; ``has_terminal``: it opened one.
    ``channel`` is where a failure is reported: ``control``, then the connection of ``start``, -1 when neither is open.
    """

    __slots__ = (
        "args",
        "channel",
        "chdir_again",
        "env",
        "has_terminal",
        "home",
        "on_start_gate",
        "procfs",
        "program",
        "root",
        "slots",
        "staged",
    )

    def __init__(self, slots: dict[str, int]) -> None:
        self.slots = slots
        self.channel = slots.get("control", -1)
        self.on_start_gate = False
        self.staged = False
        self.has_terminal = False
        self.root = -1
        self.procfs = -1
        self.chdir_again = False
        self.home = ""
        self.program = ""
        self.args: tuple[str, ...] = ()
        self.env: dict[str, str] = {}

    def take(self, slot: str) -> int:
        """The descriptor of a slot, now the caller's to close. StepFailed when the launcher did not bind it."""
        try:
            return self.slots.pop(slot)
        except KeyError:
            raise StepFailed(f"use slot {slot}", 0, "not passed by the runtime") from None

    def sync(self, point: str) -> None:
        """Wait for the runtime's leave; raises Aborted."""
        try:
            os.write(self.channel, encode_sync(point))
            answer = os.read(self.channel, 64)
        except OSError as e:
            raise Aborted from e
        if answer != GO:
            raise Aborted

    def ask_id_map(self, tree: int, slot: str, *, recursive: bool) -> int:
        """Let the runtime give a detached tree the maps of a user namespace; an errno, or 0. Raises Aborted."""
        channel = socket(fileno=self.channel)
        try:
            fdpass.send(channel, encode_id_map(slot, recursive=recursive), [tree])
            answer = os.read(self.channel, 64)
        except OSError as e:
            raise Aborted from e
        finally:
            channel.detach()
        if not answer.startswith(MAPPED):
            raise Aborted
        return int(answer[len(MAPPED) :])

    def offer_listener(self, listener: int, *, send: bool) -> None:
        """Let the runtime fetch the descriptor, then close it: system calls that wait for an agent must fail when the
        agent is gone. Under the filter: any call but write(2) may wait for the agent, so it is sent only to a runtime
        that may not fetch it. Raises Aborted.
        """
        try:
            if send:
                channel = socket(fileno=self.channel)
                fdpass.send(channel, encode_listener(listener), [listener])
                channel.detach()
            else:
                os.write(self.channel, encode_listener(listener))
            answer = os.read(self.channel, 64)
            os.close(listener)
        except OSError as e:
            raise Aborted from e
        if answer != GO:
            raise Aborted

    def warn(self, text: str) -> None:
        """Only while ``control`` is open: the start gate carries nothing but the outcome."""
        if self.channel >= 0 and not self.on_start_gate:
            try:
                os.write(self.channel, encode_warning(text))
            except OSError as e:
                if e.errno != EPIPE:  # the next sync ends init when the runtime is gone
                    raise

    def report(self, failure: Failure) -> None:
        """Best effort: the exit status tells of a failure too."""
        if self.channel >= 0:
            try:
                os.write(self.channel, encode_failure(failure))
            except OSError:
                return

    def open_procfs(self) -> int:
        """A procfs of the pid namespace that nobody has mounted over, with /proc/sys; kept for further calls."""
        if self.procfs < 0:
            self.procfs = open_verified_procfs(subset_pid=False)
        return self.procfs
