"""What init and the runtime say to each other, from the clone to the program.

::

    runtime                      launcher (keeper)                 init (the new process)
       │  LAUNCH(plan, slots) ──────▶│ clone3 ──────────────────────▶│ non-dumpable, setsid, other descriptors closed
       │◀───────────── pid, pidfd ───│                               │ OomScoreAdj, JoinCgroup
       │                                                             │
       │◀── ("sync", "cgroup") ──────────────────────────────────────│ only when systemd makes the cgroup
       │ puts init into it            ("go",) ──────────────────────▶│
       │◀── ("sync", "maps") ─────────────────────────── control ────│ only with a new user namespace
       │ writes uid_map, gid_map      ("go",) ──────────────────────▶│ BecomeRoot, mounts, devices
       │◀── ("sync", "network") ─────────────────────────────────────│ only with network devices of the host
       │ moves them                   ("go",) ──────────────────────▶│
       │◀── ("idmap" | "ridmap", slot) + tree ───────────────────────│ for id-mapped mounts
       │ mount_setattr           ("mapped", errno) ─────────────────▶│
       │◀── ("sync", "hooks") ───────────────────────────────────────│ only with prestart or createRuntime hooks
       │ runs them                    ("go",) ──────────────────────▶│ createContainer hooks, pivot_root
       │◀── ("listener", number) [+ listener] ───────────────────────│ only with a seccomp filter that notifies an agent
       │ pidfd_getfd, to the agent    ("go",) ──────────────────────▶│ (here without no_new_privs, else before execve)
       │◀── ("console",) + pty master ───────────────────────────────│ only with a terminal and no ``console`` slot
       │◀── ("warning", text) ───────────────────────────────────────│ any number, at any time
       │◀── ("sync", "ready") ───────────────────────────────────────│ everything is mounted and labelled
       │ rlimits, state.json          ("go",) ──────────────────────▶│ capabilities, user, cwd, program found
       │                                                             │
       │ without a gate: end of file on control ◀────────────────────│ execve closed it: the program runs
       │                                                             │
       │ with a gate (create and start):                             │
       │◀── ("created",) ────────────────────────────────────────────│ closes control, accept() on ``start``
       │                                                             │
    start: connect(start.sock), unlink it ──────────────────────────▶│ closes the listener
       │◀── b"0" ────────────────────────────────────────────────────│ startContainer hooks, seccomp, execve
       │◀── end of file: running  |  ("error", …), then end of file

Wherever a step fails, init sends ``("error", step, op, origin, object, errno, text)`` over the channel that is open
at that time and exits with 1. The runtime answers ("abort",), or closes control, to make init exit. A runtime that
dies does the same: end of file before "created" ends init.

``control`` is SOCK_SEQPACKET, a message is the fields of one tuple above, as text between null bytes: init has seen
the container by then, so nothing that hostile bytes could upset may read what it sends. ``start.sock`` is a
SOCK_STREAM listener made by the runtime; it exists as long as the container is "created". connect() that fails with
ECONNREFUSED, or end of file before b"0", means that init is dead or was started by somebody else.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from errno import EINVAL

from shimd.linux import fdpass
from shimd.records import Record
from shimd.typed import Callable

MAX_MESSAGE = 32 * 1024
MAX_TEXT = 16 * 1024  # bytes of an error or warning; hook output is the longest
MAX_NAME = 4 * 1024  # bytes of what failed: config.json may have longer paths than the kernel
STARTED = b"0"

WITH_DESCRIPTOR = ("console", "idmap", "ridmap", "listener")

GO = b"go"
ABORT = b"abort"
CREATED = b"created"
MAPPED = b"mapped "
_LISTENER = b"listener\0"


class Failure(Record):
    """A step of the plan failed: its index in the plan (-1: before the first step), the operation's name, the JSON
    pointer of the field that asked for it, what was attempted with its object, the errno or 0, and the errno's text
    or the whole message.
    """

    step: int
    op: str
    origin: str
    attempt: str
    errno: int
    text: str

    def __str__(self) -> str:
        return f"{self.attempt}: {self.text}" if self.attempt else self.text


class Message(Record):
    """One message of init: ``kind`` is "sync", "idmap", "ridmap", "console", "listener", "warning", "error", "created",
    or "eof"; ``text`` the point, the slot, the number or the warning.
    """

    kind: str
    text: str = ""
    failure: Failure | None = None
    fd: int = -1


class ProtocolError(Exception):
    """The peer sent something that is not a message of this protocol."""


def encode_failure(failure: Failure) -> bytes:
    step, op, origin, attempt, errno, text = failure
    names = (_cut(name, MAX_NAME) for name in (op, origin, attempt))
    return _encode("error", str(step), *names, str(errno), _cut(text, MAX_TEXT))


def encode_sync(point: str) -> bytes:
    return _encode("sync", point)


def encode_id_map(slot: str, *, recursive: bool) -> bytes:
    return _encode("ridmap" if recursive else "idmap", slot)


def encode_listener(number: int) -> bytes:
    """Ends with a null byte, which marks its end on the start connection, too."""
    return _encode("listener", str(number), "")


def encode_warning(text: str) -> bytes:
    return _encode("warning", _cut(text, MAX_TEXT))


def encode_console() -> bytes:
    return b"console"


def _cut(text: str, limit: int) -> str:
    """A message that does not fit into MAX_MESSAGE would be no message."""
    data = text.encode("utf-8", "surrogatepass")
    return text if len(data) <= limit else data[:limit].decode("utf-8", "ignore")


def _encode(*fields: str) -> bytes:
    return "\0".join([field.replace("\0", "?") for field in fields]).encode("utf-8", "surrogatepass")


def decode(data: bytes) -> Message:
    """One message of init; raises ProtocolError. Empty data is the end of the file."""
    if not data:
        return Message("eof")
    try:
        match data.decode("utf-8", "surrogatepass").split("\0"):
            case ["sync" | "idmap" | "ridmap" | "warning" as kind, text]:
                return Message(kind, text)
            case ["console" | "created" as kind]:
                return Message(kind)
            case ["listener", number, ""]:
                return Message("listener", str(int(number)))
            case ["error", step, op, origin, attempt, errno, text]:
                return Message("error", text, Failure(int(step), op, origin, attempt, int(errno), text))
    except ValueError as e:
        raise ProtocolError(f"message from init cannot be decoded: {e}") from e
    raise ProtocolError(f"unexpected message from init: {data!r:.200}")


def receive(control: socket) -> Message:
    """The next message of init; ``fd`` is the pty master of a "console" message or the tree of an "idmap" or "ridmap",
    owned by the caller. Honours the socket's timeout.

    Raises ProtocolError and OSError (TimeoutError).
    """
    try:
        data, fds = fdpass.recv(control, MAX_MESSAGE, 1)
    except ConnectionResetError:  # init died with an unread answer of ours in its queue
        return Message("eof")
    try:
        message = decode(data)
        if message.kind not in WITH_DESCRIPTOR:
            return message
        if not fds and message.kind == "listener":  # to be fetched
            return message
        if not fds:
            raise ProtocolError(f"{message.kind} message without a descriptor")
        return message._replace(fd=fds.pop())
    finally:
        for fd in fds:
            os.close(fd)


def go(control: socket) -> None:
    """Let init go on after a "sync" message. Raises BrokenPipeError when init is gone."""
    control.send(GO)


def id_map_error(errno: int) -> str:
    hint = "; the file system may not support id-mapped mounts" if errno == EINVAL else ""
    return os.strerror(errno) + hint


def mapped(errno: int) -> bytes:
    """The answer to an "idmap" or "ridmap"; 0 is success."""
    return MAPPED + str(errno).encode()


def abort(control: socket) -> None:
    """Tell init, which waits in a "sync", to exit."""
    control.send(ABORT)


class NotStarted(Exception):
    """Init is gone, or another ``start`` was first."""


OnListener = Callable[[int, int], None]


def no_listener(number: int, fd: int) -> None:
    raise ProtocolError("a listener that nobody takes")


def start(path: str, on_listener: OnListener = no_listener, timeout: float | None = None) -> Failure | None:
    """Open the start gate at ``path`` and wait until init has executed the program; the failure of init, if it fails
    after the gate. ``on_listener`` gets the number that the listener of a seccomp filter has in init, and the
    listener itself or -1.

    Raises NotStarted, TimeoutError, ProtocolError. The caller unlinks the socket.
    """
    gate = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        gate.settimeout(timeout)
        try:
            gate.connect(path)
        except (ConnectionRefusedError, FileNotFoundError) as e:
            raise NotStarted(f"connect to {path}: {e.strerror}") from e
        return read_outcome(gate, on_listener)
    finally:
        gate.close()


def read_outcome(gate: socket, on_listener: OnListener = no_listener) -> Failure | None:
    """What init says on a start connection, read to its end."""
    answer = _read(gate, on_listener)
    if not answer:
        raise NotStarted("init closed the start gate without an answer")
    if answer == STARTED:
        return None
    message = decode(answer[len(STARTED) :])
    if message.failure is None:
        raise ProtocolError(f"unexpected answer at the start gate: {message.kind}")
    return message.failure


def _read(gate: socket, on_listener: OnListener) -> bytes:
    """To the end of the file, without the "listener" message, which init waits after for an answer."""
    answer, listener = b"", -1
    while len(answer) <= MAX_MESSAGE:
        try:
            data, fds = fdpass.recv(gate, MAX_MESSAGE, 1)
            listener = fds[0] if fds else listener
        except ConnectionResetError:
            break
        if not data:
            break
        answer += data
        message = answer[len(STARTED) :]
        if message.startswith(_LISTENER) and message.count(b"\0") == 2:
            on_listener(int(decode(message).text), listener)
            gate.send(GO)
            answer = STARTED
    return answer
