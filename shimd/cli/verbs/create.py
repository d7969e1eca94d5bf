"""``create``: a container whose program waits for ``start``."""

from __future__ import annotations

import os

from shimd.cli.command import NEW_ID_ARGUMENT, Call, Command, flag, number, text

OPTIONS = (
    text("bundle", "path to the bundle directory (default: the current directory)", "b"),
    text("console-socket", "path to a unix socket that is sent the master end of the container's terminal"),
    text("pidfd-socket", "path to a unix socket that is sent a pidfd of the container's init process"),
    text("pid-file", "the file to write the process id to"),
    flag("no-pivot", "do not use pivot_root; for a root file system on a ramdisk"),
    flag("no-new-keyring", "leave the container with the session keyring of the caller"),
    number("preserve-fds", "pass N additional descriptors to the container (stdio + $LISTEN_FDS + N in total)"),
)

COMMAND = Command("create a container", NEW_ID_ARGUMENT, options=OPTIONS, least=1, most=1, prefix="create failed")


def run(call: Call) -> int:
    from shimd.runtime.model import CreateOptions, Stdio

    bundle = os.path.abspath(call.text("bundle") or ".")
    options = CreateOptions(no_pivot=call.flag("no-pivot"), no_new_keyring=call.flag("no-new-keyring"))
    with call.runtime().create(call.container_id, bundle, stdio=Stdio(0, 1, 2), options=options) as container:
        for warning in container.warnings:
            call.messages.warn(warning)
    return 0
