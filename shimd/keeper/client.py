"""The keeper as the runtime and the daemon see it. Thread-safe: a call borrows a connection of a small pool."""

from __future__ import annotations

import errno
import json
import os
import threading
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket

from shimd.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimeFailure, ShimdError, Unavailable
from shimd.init.packets import MalformedMessage, close_all, receive_message, send_message
from shimd.init.request import Launched, LaunchRequest
from shimd.keeper.protocol import SOCKET_NAME, VERSION, Exit
from shimd.keeper.start import spawn_keeper
from shimd.records import Record
from shimd.typed import Iterable

__all__ = ["Exit", "KeeperClient", "LaunchRequest", "Launched", "Listing", "read_exit_file", "spawn_keeper"]

TIMEOUT = 60.0  # seconds; the keeper answers in milliseconds, so this only ends a wait for one that is stopped
_IDLE = 4

Descriptors = list[int]  # KeeperClient.list hides the builtin

_ERRORS: dict[int, type[ShimdError]] = {
    errno.EEXIST: AlreadyExists,
    errno.ENOENT: NotFound,
    errno.EBUSY: FailedPrecondition,
}


class Listing(Record):
    """What a keeper has: pids of living launches by name, names of held descriptors, exits that are not forgotten."""

    alive: dict[str, int]
    held: tuple[str, ...]
    exits: tuple[Exit, ...]


class KeeperClient:
    """Raises Unavailable when the keeper is gone, and the ShimdError that its answer means."""

    def __init__(self, path: str) -> None:
        """``path`` is the socket, or the state directory that holds it."""
        self.path = os.path.join(path, SOCKET_NAME) if os.path.isdir(path) else path
        self._idle: list[socket] = []
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, path: str) -> KeeperClient:
        """A client whose keeper answered; raises Unavailable, or FailedPrecondition for a keeper of another version."""
        client = cls(path)
        client.hello()
        return client

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def hello(self) -> int:
        """The keeper's pid."""
        match self._call("hello", VERSION)[0]:
            case (int(version), int(pid)) if version == VERSION:
                return pid
            case other:
                raise FailedPrecondition(f"the keeper at {self.path} does not speak version {VERSION}: {other!r:.200}")

    def launch(self, request: LaunchRequest) -> Launched:
        """AlreadyExists: the name is alive or not forgotten; RuntimeFailure: the kernel refused."""
        fds = [fd for _, fd in (*request.fds, *request.hold)]
        has_cgroup = request.cgroup_fd >= 0
        if has_cgroup:
            fds.append(request.cgroup_fd)
        slots = tuple(name for name, _ in request.fds)
        hold = tuple(name for name, _ in request.hold)
        arguments = (
            request.name,
            request.clone,
            request.stage,
            request.steps,
            slots,
            hold,
            request.exit_file,
            has_cgroup,
        )
        return self._launched(*self._call("launch", *arguments, fds=fds))

    def hold(self, descriptors: dict[str, int]) -> None:
        """Keep duplicates under these names; a name that is taken is replaced."""
        self._call("hold", tuple(descriptors), fds=list(descriptors.values()))

    def take(self, *names: str) -> Descriptors:
        """Duplicates of what is held, which stays held. NotFound: none is returned."""
        return self._call("take", names)[1]

    def drop(self, *names: str) -> None:
        self._call("drop", names)

    def pidfd(self, name: str) -> Launched:
        """Of a launch that is alive or not forgotten."""
        return self._launched(*self._call("pidfd", name))

    def _launched(self, results: tuple[object, ...], fds: Descriptors) -> Launched:
        match results, fds:
            case (int(pid),), [pidfd]:
                return Launched(pid, pidfd)
        close_all(fds)
        raise Unavailable(f"keeper at {self.path}: unexpected answer: {results!r:.200}")

    def list(self) -> Listing:
        match self._call("list")[0]:
            case (tuple(alive), tuple(held), tuple(exits)):
                return Listing(dict(alive), held, tuple(Exit(*fields) for fields in exits))
            case other:
                raise Unavailable(f"keeper at {self.path}: unexpected listing: {other!r:.200}")

    def forget(self, *names: str) -> None:
        """The exits of these launches were taken note of; living ones are forgotten when they end."""
        self._call("forget", names)

    def stop(self, *, force: bool = False) -> None:
        """End the keeper. FailedPrecondition while it has living children, unless ``force``: they live on without an
        exit record.
        """
        self._call("stop", force)

    def subscribe(self) -> socket:
        """A non-blocking connection for an event loop: on readable, ``read_exits``. Exits not yet forgotten come
        first.
        """
        sock = self._open()
        try:
            self._exchange(sock, "subscribe", (), [])
            sock.settimeout(0)
        except BaseException:
            sock.close()
            raise
        return sock

    def _call(self, verb: str, *arguments: object, fds: Iterable[int] = ()) -> tuple[tuple[object, ...], Descriptors]:
        sock = self._borrow()
        try:
            results = self._exchange(sock, verb, arguments, list(fds))
        except Unavailable:
            sock.close()  # not back to the pool: the answer to this request could still come on it
            raise
        except ShimdError:
            self._give_back(sock)
            raise
        self._give_back(sock)
        return results

    def _exchange(
        self, sock: socket, verb: str, arguments: tuple[object, ...], fds: Descriptors
    ) -> tuple[tuple[object, ...], Descriptors]:
        try:
            send_message(sock, (verb, *arguments), fds)
            answer, received = receive_message(sock)
        except (OSError, MalformedMessage) as e:
            raise Unavailable(f"{verb} request to the keeper at {self.path}: {e}") from e
        match answer:
            case ("ok", *results):
                return tuple(results), received
        close_all(received)
        match answer:
            case ("error", int(number), str(text)):
                raise _ERRORS.get(number, RuntimeFailure)(text)
            case ():
                raise Unavailable(f"{verb} request to the keeper at {self.path}: connection closed")
        raise Unavailable(f"{verb} request to the keeper at {self.path}: unexpected answer {answer!r:.200}")

    def _borrow(self) -> socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._open()

    def _give_back(self, sock: socket) -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(sock)
                return
        sock.close()

    def _open(self) -> socket:
        sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            sock.settimeout(TIMEOUT)
            sock.connect(self.path)
        except OSError as e:
            sock.close()
            raise Unavailable(f"connect to the keeper at {self.path}: {e.strerror}") from e
        return sock


def read_exits(subscription: socket) -> list[Exit] | None:
    """The exits that are readable now, [] for none, None when the keeper is gone. Raises MalformedMessage."""
    exits: list[Exit] = []
    while True:
        try:
            message, fds = receive_message(subscription)
        except BlockingIOError:
            return exits
        except ConnectionResetError:
            return exits or None
        close_all(fds)
        if not message:
            return exits or None
        exits.append(parse_exit(message))


def parse_exit(message: tuple[object, ...]) -> Exit:
    match message:
        case ("exit", str(name), int(pid), int(status), int(at), int(utime), int(stime), int(maxrss)):
            return Exit(name, pid, status, at, utime, stime, maxrss)
    raise MalformedMessage(f"not an exit: {message!r:.200}")


def read_exit_file(path: str) -> Exit | None:
    """The record that the keeper wrote; None when there is none. It is renamed into place, so never half-written."""
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.read())
    except FileNotFoundError:
        return None
    return Exit(**{name: fields[name] for name in Exit._fields})
