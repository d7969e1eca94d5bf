"""Which containerd has started us: its version, asked of its own program once and remembered for as long as that
file is the same; and what follows from it, for the script.
"""

from __future__ import annotations

import os

from clients.containerd_shim.places import Places

_NAME = "containerd"


def major_version(places: Places, parent: int = 0) -> int:
    """0 when it is not known: started by something else, or unreadable."""
    program = f"/proc/{parent or os.getppid()}/exe"
    try:
        # Of the process, not of what lies at that path by now: an upgrade comes before the restart.
        if os.path.basename(os.readlink(program).removesuffix(" (deleted)")) != _NAME:
            return 0
        found = os.stat(program)
        note = f"{places.state}/containerds/{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}.version"
        return parse(_remembered(note) or _ask(program, note))
    except OSError:
        return 0


def note_form(note: str, form: str) -> None:
    """For the script: which form of answer our parent gets, for as long as it lives."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat") as file:
            started = file.read().rpartition(") ")[2].split()[19]
        _write(note, f"{parent} {started} {form}\n")
    except OSError:
        pass  # it asks us again


def parse(text: str) -> int:
    """From "containerd github.com/containerd/containerd/v2 2.1.9"; 0 for anything else."""
    words = text.split()
    if len(words) < 3 or words[0] != _NAME:
        return 0
    major = words[2].removeprefix("v").partition(".")[0]
    return int(major) if major.isdecimal() else 0


def _remembered(note: str) -> str:
    try:
        with open(note) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _ask(program: str, note: str) -> str:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # Our own output is the answer to containerd, which reads the standard error as part of it.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    try:
        pid = os.posix_spawn(program, [_NAME, "--version"], {}, file_actions=actions)
    finally:
        os.close(writer)
    with open(reader) as output:
        text = output.read(4096)
    os.waitpid(pid, 0)
    _write(note, text)
    return text


def _write(note: str, text: str) -> None:
    temporary = f"{note}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(text)
    os.rename(temporary, note)
