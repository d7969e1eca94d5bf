"""What the keeper and its clients say to each other over ``keeper.sock`` (SOCK_SEQPACKET, 0600, same euid only).

A request is the marshalled tuple (verb, *arguments) with descriptors, the answer ("ok", *results) or ("error", errno,
text). A connection has one request under way at a time: who wants several uses several connections. A connection that
said SUBSCRIBE makes no further requests and gets ("exit", *Exit) for every exit, first those that nobody has said
FORGET for.

========== ======================================================== ==============================================
verb       arguments, [descriptors]                                 results, [descriptors]
========== ======================================================== ==============================================
hello      version                                                  version, pid of the keeper
launch     name, clone, stage, steps, slots, hold, exit_file,       pid, [pidfd]
           has_cgroup, [slots…, hold…, cgroup]
hold       names, [descriptors]                                     (a name that is held already is replaced)
take       names                                                    [descriptors]; they stay held
drop       names                                                    (unknown names are ignored)
pidfd      name of a launch                                         pid, [pidfd]
list       (none)                                                   ((name, pid)…) alive, (name…) held, (Exit…)
subscribe  (none)                                                   (none)
forget     names of launches                                        (unknown names are ignored); what is held as
                                                                    "<launch>:…" is dropped, too
stop       force                                                    (none), then the keeper exits
========== ======================================================== ==============================================

The keeper answers with errno EEXIST to a launch under a name that is alive or not forgotten, ENOENT for an unknown
name, EBUSY to a stop with living children, EPROTO to what it does not understand.

How a message travels: see ``shimd.init.packets``.
"""

from __future__ import annotations

import os

from shimd.records import Record

VERSION = 1
SOCKET_NAME = "keeper.sock"
LOCK_NAME = "keeper.lock"


class Exit(Record):
    """How a launched process ended; ``wait_status`` as from waitpid(2), ``exited_at_ns`` of the real-time clock."""

    name: str
    pid: int
    wait_status: int
    exited_at_ns: int
    utime_us: int
    stime_us: int
    maxrss_kib: int

    @property
    def code(self) -> int:
        """The exit code, or 128 + the signal's number."""
        return exit_code(self.wait_status)


def exit_code(wait_status: int) -> int:
    return 128 + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)
