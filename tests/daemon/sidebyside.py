"""The same bundle run by shimd and by runc, and what a program inside found compared."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from shimd.api.v1 import runtime_pb2 as api
from tests.support import wait
from tests.support.client import Client

EXPLAINED = (
    # What runs are told apart by, not runtimes.
    (r"(?m)^\d+ \d+ \d+:\d+ ", ""),  # the numbers of a mount and of a device without one
    (r"(?m)^\S+ / ", "ROOTFS / "),
    (r"(?m)^\S+/rootfs\d/", "ROOTFS/"),
    # Warnings, which shimd has in the Created event.
    (r'(?m)^time="[^"]*" level=warning .*\n', ""),
    # A tmpfs has the mode of the folder beneath; runc 1.1 changes it afterwards, so it is no option.
    (r"(?m)^(\S+ /(?:mnt|etc)\S* .* tmpfs rw\S*),mode=755|^(/mnt .* tmpfs rw\S*),mode=755", r"\1\2"),
    # runc's threads have taken numbers of the pid namespace.
    (r"(?m)^(NS\w+):\t\d+$", r"\1: N"),
    # runc before 1.2 mounts a new tmpfs with few options over each masked folder; we have one for all.
    (r"(?m)^/ (\S+) ro,(nosuid,nodev,noexec,)?relatime - tmpfs (tmpfs ro|none ro,size=4k,nr_inodes=1)$", r"masked \1"),
    # The tmpfs that holds the views of v1 hierarchies: config.json asks for a read-only one, runc leaves it writable.
    (r"(?m)^/ /sys/fs/cgroup r[wo],", "/ /sys/fs/cgroup "),
    # With a cgroup namespace runc mounts hierarchies anew, and gives one without a controller its name as source.
    (r"- cgroup systemd rw,name=systemd", "- cgroup cgroup rw,name=systemd"),
    # On hosts of both versions, runc before 1.2 leaves out the unified hierarchy.
    (r"(?m)^\S+ /sys/fs/cgroup/unified .*\n", ""),
    (r"(?m)^\S+ 2 root (root|0) unified\n", ""),
    (r"(?m)^.*/sys/fs/cgroup/unified/.*\n", ""),
)
"""(pattern, replacement): the differences that are meant. Applied to what is said under both."""


class Run(NamedTuple):
    """What a container wrote to both streams, and how it ended."""

    output: str
    code: int


def run_with_shimd(client: Client, bundle: Path, container: str) -> Run:
    events = list(client.runtime.Run(api.RunRequest(id=container, bundle=str(bundle))))
    output = b"".join(event.output.data for event in events)
    return Run(output.decode(errors="replace"), events[-1].exited.exit_status)


def run_with_runc(bundle: Path, container: str, *, program: str = "runc") -> Run:
    """stdin is empty, as that of a container of shimd's without input."""
    command = [program, "--root", f"{bundle}/{program}", "run", "--bundle", str(bundle), container]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=wait.SECONDS,
        check=False,
    )
    shutil.rmtree(bundle / program, ignore_errors=True)
    return Run(done.stdout.decode(errors="replace"), done.returncode)


def difference(ours: str, theirs: str) -> str:
    """Lines as of diff(1), runc's first; none when both are the same but for what is explained."""
    texts = (tidy(theirs).splitlines(), tidy(ours).splitlines())
    return "\n".join(difflib.unified_diff(*texts, "runc", "shimd", lineterm="", n=0))


def tidy(output: str) -> str:
    output = re.sub(r"\w+:\[\d+\]", lambda found: _namespace(found[0]), output)
    for pattern, replacement in EXPLAINED:
        output = re.sub(pattern, replacement, output)
    return output


def _namespace(link: str) -> str:
    """The host's namespaces are those of this process."""
    kind = link.partition(":")[0]
    own = f"/proc/self/ns/{kind}"
    return f"{kind} of the {'host' if os.path.lexists(own) and os.readlink(own) == link else 'container'}"
