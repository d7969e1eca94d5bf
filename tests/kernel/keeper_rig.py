"""A keeper of a test's own."""

from __future__ import annotations

import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from contextlib import closing, suppress
from pathlib import Path

from shimd.errors import Unavailable
from shimd.init import handshake
from shimd.init.request import Launched
from shimd.init.spare import SPARE_NAME
from shimd.keeper.client import Exit, KeeperClient, read_exits, spawn_keeper
from shimd.linux.process import set_child_subreaper
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import request
from tests.support import wait


class Keeper:
    """A keeper of this test, and what its processes say and print."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._known = wait.children()
        set_child_subreaper(1)  # to reap the keeper, which detaches from whoever starts it
        spawn_keeper(str(place))
        self.client = KeeperClient.connect(str(place))
        self.pid = self.client.hello()
        self.pidfd = os.pidfd_open(self.pid)
        self.exits = self.client.subscribe()
        self._seen: dict[str, Exit] = {}

    def close(self) -> None:
        self.exits.close()
        try:
            self.client.stop(force=True)
        except Unavailable:
            assert not rig.is_alive(self.pidfd)
        self.client.close()
        self.reap()

    def reap(self) -> None:
        wait.exited(self.pidfd, what="the keeper's end")
        os.close(self.pidfd)
        wait.reap_children_but(self._known)  # the keeper, and what it had not reaped yet
        set_child_subreaper(0)

    def launch(
        self, name: str, *operations: ops.Op, exit_file: str = "", cgroup_fd: int = -1, **fields: object
    ) -> tuple[Launched, socket]:
        control, control_child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        slots = {"control": control_child.fileno(), **fields.pop("fds", {})}  # type: ignore[dict-item]
        made = request(operations, fds=slots, name=name, **fields)  # type: ignore[arg-type]
        made = made._replace(exit_file=exit_file, cgroup_fd=cgroup_fd)
        try:
            return self.client.launch(made), control
        except BaseException:
            control.close()
            raise
        finally:
            control_child.close()

    def run(self, name: str, *operations: ops.Op, **fields: object) -> tuple[handshake.Failure | None, Exit]:
        launched, control = self.launch(name, *operations, **fields)  # type: ignore[arg-type]
        with closing(control):
            messages = rig.converse(control, launched.pid)
        os.close(launched.pidfd)
        failures = [message.failure for message in messages if message.failure is not None]
        return failures[0] if failures else None, self.exit(name)

    def exit(self, name: str) -> Exit:
        while name not in self._seen:
            wait.readable(self.exits.fileno(), what=f"the exit of {name}")
            exits = read_exits(self.exits)
            assert exits is not None, "the keeper is gone"
            self._seen |= {entry.name: entry for entry in exits}
        return self._seen.pop(name)

    def fds(self) -> int:
        """How many descriptors the keeper has once it is idle and, where it can, has made a spare process."""
        self.client.hello()
        self.spare()
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def spare(self) -> int:
        """The pid of the spare process; 0 when there is none after a time in which nothing was asked of the keeper."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == SPARE_NAME + "\n":
                        return int(pid)
        return 0

    def memory(self) -> int:
        """Anonymous memory in kB, whether it is shared with children at the moment or not."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))
