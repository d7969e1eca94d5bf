"""The standard streams of one process: where its client wants them, the descriptors it gets, what runs between.

A stream is named as in containerd's API: "" (nothing), the path of a FIFO or of an existing file, ``fifo://PATH``,
``file://PATH`` (made if it is missing, appended to), for stdout ``binary://PATH`` (a program that takes stderr, too;
see logger.py), or our ``attach:`` (kept for clients of the daemon).

The process never gets the client's file or FIFO itself, always a pipe or a terminal with a relay behind: a descriptor
of a host file in a container would let its root truncate it, read it through /proc/self/fd, or make it setuid.

- For output, a FIFO is opened for reading *and* writing, so readers may come and go: no end of file, no SIGPIPE, and
  it takes the bytes (up to its size) while nobody reads (fifo(7)).
- For input, the reading end and a writing end of our own are opened; the latter is what CloseIO closes, so a client
  that detaches does not end the process's input, and one that half-closes does.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from urllib.parse import unquote, urlsplit

from shimd.errors import InvalidArgument, NotFound, ShimdError
from shimd.records import Record
from shimd.supervise import logger
from shimd.supervise.attach import STDERR, STDOUT
from shimd.supervise.logger import NOBODYS, Logger, Whose, start_logger

ATTACH = "attach:"

_CLOEXEC = os.O_CLOEXEC | os.O_NOCTTY


class Target(Record):
    """One parsed name; ``kind`` is "null", "attach", "path", "file" or "logger", whose path is the whole name."""

    kind: str
    path: str = ""


def parse_target(uri: str) -> Target:
    """Raises InvalidArgument."""
    if uri in ("", "/dev/null"):
        return Target("null")
    if uri == ATTACH:
        return Target("attach")
    if uri.startswith("/"):
        return Target("path", uri)
    parts = urlsplit(uri)
    if parts.scheme in ("fifo", "file") and not parts.netloc and parts.path.startswith("/"):
        return Target("file" if parts.scheme == "file" else "path", unquote(parts.path))
    if parts.scheme in logger.SCHEMES:
        return Target("logger", uri)
    raise InvalidArgument(f"stdio {uri!r} is neither an absolute path nor a known URI")


class Ends(Record):
    """What the process gets; -1 where a terminal takes the place."""

    stdin: int
    stdout: int
    stderr: int


class OpenStdio:
    """Opened streams before the process exists. ``ends`` are the process's; ``close`` gives everything up."""

    def __init__(self, *, terminal: bool) -> None:
        self.terminal = terminal
        self.ends = Ends(-1, -1, -1)
        # Our sides, each descriptor at most once; -1 is none.
        self.input = -1  # where stdin comes from: a FIFO's reading end, or a file
        self.input_keeper = -1  # the FIFO's writing end that holds it open
        self.outputs: dict[int, int] = {}  # stream -> where its bytes go
        self.pipes: dict[str, int] = {}  # "stdin", "stdout", "stderr" -> our end of the pipe to the process
        self.attach_stdin = False
        self.attached: set[int] = set()  # streams that clients of the daemon take
        self.logger: Logger | None = None

    def close_ends(self) -> None:
        """The process has its copies, or will never exist. Idempotent."""
        for fd in set(self.ends):
            _close(fd)
        self.ends = Ends(-1, -1, -1)

    def close(self) -> None:
        self.close_ends()
        for fd in (self.input, self.input_keeper, *self.outputs.values(), *self.pipes.values()):
            _close(fd)
        self.input = self.input_keeper = -1
        self.outputs.clear()
        self.pipes.clear()
        if self.logger is not None:
            self.logger.discard()
            self.logger = None


def open_stdio(
    stdin: str,
    stdout: str,
    stderr: str,
    *,
    terminal: bool,
    uid: int = 0,
    gid: int = 0,
    whose: Whose = NOBODYS,
) -> OpenStdio:
    """Open what the three names mean; ``uid`` and ``gid`` own the pipes.

    Raises InvalidArgument, NotFound, RuntimeFailure or OSError, and leaves nothing open then.
    """
    opened = OpenStdio(terminal=terminal)
    with ExitStack() as stack:
        stack.callback(opened.close)
        _open_input(opened, parse_target(stdin))
        targets = {STDOUT: parse_target(stdout), STDERR: parse_target("" if terminal else stderr)}
        if targets[STDOUT].kind == "logger":
            targets[STDERR] = targets[STDOUT]
        for stream, target in targets.items():
            _open_output(opened, stream, target, shared=targets[STDOUT] if stream == STDERR else None)
        if not terminal:
            _make_ends(opened, targets, uid, gid)
        if targets[STDOUT].kind == "logger":
            _start_logger(opened, stdout, whose, uid, gid)
        stack.pop_all()
    return opened


def reopen_stdio(
    stdin: str,
    stdout: str,
    stderr: str,
    *,
    terminal: bool,
    pipes: dict[str, int],
    source: int = -1,
    input_closed: bool = False,
    whose: Whose = NOBODYS,
) -> tuple[OpenStdio, str]:
    """The same for a process that runs, whose ``pipes`` (by "stdin", "stdout", "stderr") and ``source`` of input become
    the result's. ``input_closed``: input ends with its writers.

    A name that cannot be opened any more must not stop the program: its bytes go nowhere, the second result says so.
    """
    opened = OpenStdio(terminal=terminal)
    problems = []
    targets = {STDOUT: stdout, STDERR: "" if terminal else stderr}
    for stream, name in targets.items():
        try:
            target = parse_target(name)
            _open_output(opened, stream, target, shared=None)
            if target.kind == "logger" and terminal:
                _start_logger(opened, name, whose, 0, 0)
        except (OSError, ShimdError) as error:
            problems.append(str(error))
    opened.attach_stdin = stdin == ATTACH and (terminal or "stdin" in pipes)
    opened.input = source
    if not input_closed:
        _keep_open(opened)
    opened.pipes.update(pipes)
    return opened, "; ".join(problems)


def _open_input(opened: OpenStdio, target: Target) -> None:
    if target.kind == "attach":
        opened.attach_stdin = True
    elif target.kind == "logger":
        raise InvalidArgument(f"stdio {target.path}: a logging program is for output")
    elif target.kind != "null":
        opened.input = _open_fifo_or_file(target.path, os.O_RDONLY)
        _keep_open(opened)


def _keep_open(opened: OpenStdio) -> None:
    """A FIFO, against the end of input when a client goes."""
    if opened.input >= 0 and stat.S_ISFIFO(os.fstat(opened.input).st_mode):
        # By descriptor: the name could lead to another file by now.
        opened.input_keeper = _open(f"/proc/self/fd/{opened.input}", os.O_WRONLY | os.O_NONBLOCK)


def _open_output(opened: OpenStdio, stream: int, target: Target, *, shared: Target | None) -> None:
    if target.kind == "attach":
        opened.attached.add(stream)
    elif target.kind == "logger":
        if stream == STDERR and target != shared:
            raise InvalidArgument(f"stdio {target.path}: a logging program is named for standard output")
    elif target.kind != "null":
        if target == shared and STDOUT in opened.outputs:
            opened.outputs[stream] = os.dup(opened.outputs[STDOUT])
        elif target.kind == "file":
            os.makedirs(os.path.dirname(target.path), 0o755, exist_ok=True)
            opened.outputs[stream] = _open(target.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        else:
            opened.outputs[stream] = _open_fifo_or_file(target.path, os.O_RDWR | os.O_APPEND)


def _open_fifo_or_file(path: str, flags: int) -> int:
    fd = _open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        return fd
    os.close(fd)
    raise InvalidArgument(f"stdio {path} is neither a FIFO nor a regular file")


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _CLOEXEC, 0o644)
    except FileNotFoundError as error:
        raise NotFound(f"stdio {path} does not exist") from error


def _make_ends(opened: OpenStdio, targets: dict[int, Target], uid: int, gid: int) -> None:
    """Fill ``opened.ends`` one by one, so that a failure half-way leaves nothing that ``opened.close`` misses."""
    null = os.open("/dev/null", os.O_RDWR | _CLOEXEC)
    opened.ends = Ends(null, null, null)
    if opened.input >= 0 or opened.attach_stdin:
        theirs, opened.pipes["stdin"] = _pipe(uid, gid, process_end=0)
        opened.ends = opened.ends._replace(stdin=theirs)
    if targets[STDOUT].kind not in ("null", "logger"):
        theirs, opened.pipes["stdout"] = _pipe(uid, gid, process_end=1)
        opened.ends = opened.ends._replace(stdout=theirs)
    if targets[STDERR].kind not in ("null", "logger"):
        theirs, opened.pipes["stderr"] = _pipe(uid, gid, process_end=1)
        opened.ends = opened.ends._replace(stderr=theirs)
    if null not in opened.ends:
        os.close(null)


def _start_logger(opened: OpenStdio, uri: str, whose: Whose, uid: int, gid: int) -> None:
    """It reads from the process itself; of a terminal, what we copy."""
    opened.logger, stdout, stderr = start_logger(uri, whose)
    if opened.terminal:
        os.close(stderr)
        os.set_blocking(stdout, False)
        opened.outputs[STDOUT] = stdout
        return
    replaced = {opened.ends.stdout, opened.ends.stderr} - {opened.ends.stdin}
    opened.ends = opened.ends._replace(stdout=stdout, stderr=stderr)
    for fd in replaced:
        os.close(fd)
    if uid or gid:
        os.fchown(stdout, uid, gid)
        os.fchown(stderr, uid, gid)


def _pipe(uid: int, gid: int, *, process_end: int) -> tuple[int, int]:
    """(the process's end, ours); only ours is non-blocking."""
    fds = os.pipe2(os.O_CLOEXEC)
    theirs, ours = fds[process_end], fds[1 - process_end]
    os.set_blocking(ours, False)
    if uid or gid:
        os.fchown(theirs, uid, gid)
    return theirs, ours


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
