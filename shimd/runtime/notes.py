"""What a daemon notes in a container's state directory about its processes, for the one that comes after it: which
execs there are, which exits were told to the clients, and whose input has no end but that of its writers.

The name of a note is that of the exec, with a suffix; the first process has the suffix alone.
"""

from __future__ import annotations

import os

from shimd import jsontext
from shimd.keeper.protocol import Exit
from shimd.records import Record
from shimd.runtime.model import Container
from shimd.runtime.state import EXEC_EXIT_SUFFIX, EXIT_FILE

_EXEC = ".exec.json"
_TOLD = "told.json"
_INPUT_CLOSED = "input-closed"

_MAX_EXEC = 64 << 10


class ExecNote(Record):
    """``start_time`` as in ContainerState; ``started_at_ns`` is since the epoch."""

    id: str
    pid: int
    start_time: int
    started_at_ns: int
    terminal: bool
    stdio: tuple[str, str, str]


def prepare_exec(container: Container, note: ExecNote) -> None:
    """Nobody sees it before ``commit_exec``: without that, the exec never became its program."""
    container.directory.prepare(note.id + _EXEC, jsontext.dumps(note._asdict()).encode())


def discard_exec(container: Container, exec_id: str) -> None:
    """What ``prepare_exec`` wrote."""
    container.directory.unprepare(exec_id + _EXEC)


def commit_exec(container: Container, exec_id: str) -> None:
    container.directory.commit(exec_id + _EXEC)


def execs(container: Container) -> tuple[ExecNote, ...]:
    """In the order in which they were started. Raises ValueError for what ``prepare_exec`` has not written."""
    names = [name for name in os.listdir(container.directory.fd) if name.endswith(_EXEC) and not name.startswith(".")]
    found = [_parse(container.directory.read(name, _MAX_EXEC)) for name in names]
    return tuple(sorted(found, key=lambda note: note.started_at_ns))


def _parse(data: bytes) -> ExecNote:
    match jsontext.loads(data.decode()):
        case {
            "id": str(exec_id),
            "pid": int(pid),
            "start_time": int(start),
            "started_at_ns": int(started),
            "terminal": bool(terminal),
            "stdio": [str(stdin), str(stdout), str(stderr)],
        }:
            return ExecNote(exec_id, pid, start, started, terminal, (stdin, stdout, stderr))
    raise ValueError(f"not a note of an exec: {data!r:.200}")


def note_exit(container: Container, exec_id: str, ended: Exit) -> None:
    """Clients were told."""
    container.directory.write(_name(exec_id, _TOLD), jsontext.dumps(ended._asdict()).encode())


def told_file(container: Container, exec_id: str) -> str:
    """Where ``note_exit`` writes, in the form of ``exit_file``."""
    return os.path.join(container.directory.path, _name(exec_id, _TOLD))


def exit_file(container: Container, exec_id: str) -> str:
    """Where the keeper writes how the process ended."""
    return os.path.join(container.directory.path, exec_id + EXEC_EXIT_SUFFIX if exec_id else EXIT_FILE)


def note_input_closed(container: Container, exec_id: str) -> None:
    """The client has asked for the end of input, which comes when nobody writes any more."""
    container.directory.write(_name(exec_id, _INPUT_CLOSED), b"")


def input_was_closed(container: Container, exec_id: str) -> bool:
    return container.directory.exists(_name(exec_id, _INPUT_CLOSED))


def remove(container: Container, exec_id: str) -> None:
    """All about an exec."""
    for name in (exec_id + _EXEC, _name(exec_id, _TOLD), _name(exec_id, _INPUT_CLOSED)):
        container.directory.unlink(name)


def _name(exec_id: str, what: str) -> str:
    return f"{exec_id}.{what}" if exec_id else what
