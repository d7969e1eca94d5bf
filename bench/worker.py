"""Runs command-line runtimes and times them: a small process, so that what is measured is the runtime and not its
caller.

It reads one JSON request per line from standard input, and answers with one line each. It is the subreaper of what
it starts, as a containerd shim is, so that ``create`` leaves the container's process to it. With
``--without-unified`` it works in a mount namespace where /sys/fs/cgroup/unified is unmounted: crun refuses the
hybrid set-up.

{"do": "run", "commands": [[...], ...], "concurrency": 4} each command to its end {"do": "life", "commands":
[create, start, delete], "pid_file": "..."} {"do": "read", "command": [...]} its standard output read to the end,
timed from the first byte {"do": "shim", ...} see bench/shim.py

The answer: {"seconds": whole, "cpu": user + system of all children, "bytes": read}, or {"error": text}.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench import shim

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
UNIFIED = "/sys/fs/cgroup/unified"
CHUNK = 1 << 20


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    _check(libc.unshare(CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    if "--without-unified" in sys.argv[1:] and os.path.ismount(UNIFIED):
        _check(libc.umount2(UNIFIED.encode(), 0))
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = serve(json.loads(line))
        except (OSError, CommandFailed) as e:
            answer = {"error": str(e)}
        print(json.dumps(answer), flush=True)


class CommandFailed(Exception):
    """A command ended with something else than 0."""


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def serve(request: dict[str, Any]) -> dict[str, Any]:
    cpu = _children_cpu()
    start = time.perf_counter()
    done = 0
    match request["do"]:
        case "run":
            run_all(request["commands"], request["concurrency"])
        case "life":
            live(request["commands"], request["pid_file"])
        case "read":
            start, done = read(request["command"])
        case "shim":
            shim.live(request)
    return {"seconds": time.perf_counter() - start, "cpu": _children_cpu() - cpu, "bytes": done}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_all(commands: list[list[str]], concurrency: int) -> None:
    waiting = list(reversed(commands))
    running: dict[int, list[str]] = {}
    while waiting or running:
        while waiting and len(running) < concurrency:
            command = waiting.pop()
            running[spawn(command)] = command
        pid, status = os.wait()
        if (ended := running.pop(pid, None)) is not None:
            check_exit(ended, status)


def live(commands: list[list[str]], pid_file: str) -> None:
    create, start, delete = commands
    run(create)
    pid = int(Path(pid_file).read_text())
    run(start)
    os.waitpid(pid, 0)
    run(delete)


def run(command: list[str]) -> None:
    check_exit(command, os.waitpid(spawn(command), 0)[1])


def read(command: list[str]) -> tuple[float, int]:
    """(when the first byte came, how many came)"""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid = spawn(command, stdout=theirs)
    os.close(theirs)
    total = len(os.read(ours, CHUNK))
    start = time.perf_counter()
    while chunk := os.read(ours, CHUNK):
        total += len(chunk)
    os.close(ours)
    check_exit(command, os.waitpid(pid, 0)[1])
    return start, total


def spawn(command: list[str], *, stdout: int = -1) -> int:
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)]
    actions.append((os.POSIX_SPAWN_DUP2, stdout if stdout >= 0 else 0, 1))
    return os.posix_spawn(command[0], command, os.environ, file_actions=actions)


def check_exit(command: list[str], status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise CommandFailed(f"{' '.join(command)}: exit code {code}")


if __name__ == "__main__":
    main()
