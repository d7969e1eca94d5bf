"""What each verb of the protocol does."""

from __future__ import annotations

import os
import sys
from errno import EBUSY, EIO, ENOENT, EPROTO

from shimd.errors import RuntimeFailure, ShimdError
from shimd.init.pending import Pending
from shimd.init.request import Launched, LaunchRequest
from shimd.init.spawn import start_clone
from shimd.keeper.children import Children
from shimd.keeper.connection import Connection, Watcher
from shimd.keeper.protocol import VERSION, Exit
from shimd.keeper.spares import Spares
from shimd.typed import Any, Callable, Iterable

Results = tuple[tuple[Any, ...], list[int]]


class Keeper:
    """A Server for connections. ``stopped`` becomes true after a STOP that was not refused; ``in_child`` runs first
    in every new process that no spare makes.
    """

    def __init__(self, watcher: Watcher, children: Children, spares: Spares, in_child: Callable[[], None]) -> None:
        self._watcher = watcher
        self._children = children
        self._spares = spares
        self._in_child = in_child
        self._held: dict[str, int] = {}
        self._belongings: dict[str, list[str]] = {}  # name of a launch -> what is or was held as "<name>:..."
        self._subscribers: set[Connection] = set()
        self.stopped = False
        self._verbs: dict[str, Callable[..., Results | None]] = {
            "hello": self._hello,
            "launch": self._launch,
            "hold": self._hold,
            "take": self._take,
            "drop": self._drop,
            "pidfd": self._pidfd,
            "list": self._list,
            "subscribe": self._subscribe,
            "forget": self._forget,
            "stop": self._stop,
        }

    def handle(self, connection: Connection, message: tuple[Any, ...], fds: list[int]) -> None:
        verb, *arguments = message
        try:
            if verb not in self._verbs:
                raise OSError(EPROTO, f"unknown request {verb!r:.100}")
            results = self._verbs[verb](connection, fds, *arguments)
        except OSError as e:
            connection.answer(("error", e.errno or EIO, e.strerror or str(e)), [])
        except ShimdError as e:
            connection.answer(("error", EIO, str(e)), [])
        except Exception as e:  # noqa: BLE001  (whatever a client sends, the keeper lives on)
            print(f"keeper: {verb!r:.100} request: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
            connection.answer(("error", EPROTO, f"malformed {verb!r:.100} request: {e}"), [])
        else:
            if results is not None:
                connection.answer(("ok", *results[0]), results[1])
                if verb == "launch":
                    self._forget_unanswered(connection, arguments[0])

    def disconnected(self, connection: Connection) -> None:
        self._subscribers.discard(connection)

    def reap(self) -> None:
        for exit_ in self._children.reap():
            self._publish(exit_)

    def _publish(self, exit_: Exit) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber.push(("exit", *exit_))

    def _hello(self, connection: Connection, fds: list[int], version: int) -> Results:
        return (VERSION, os.getpid()), []

    def _launch(
        self,
        connection: Connection,
        fds: list[int],
        name: str,
        clone: int,
        stage: bytes,
        steps: bytes,
        slots: tuple[str, ...],
        hold: tuple[str, ...],
        exit_file: str,
        has_cgroup: bool,  # noqa: FBT001  (a field of the message)
    ) -> Results | None:
        if len(fds) != len(slots) + len(hold) + has_cgroup or not name.isprintable():
            raise OSError(EPROTO, "launch request does not match its descriptors")
        bound = tuple(zip(slots, fds, strict=False))
        cgroup = fds[-1] if has_cgroup else -1
        self._children.reserve(name)
        try:
            request = LaunchRequest(name, clone, stage, steps, bound, cgroup_fd=cgroup)
            made = self._spares.launch(request) or start_clone(request, self._in_child)
        except BaseException:
            self._children.release(name)
            raise
        kept = fds[len(slots) : len(slots) + len(hold)]
        del fds[len(slots) : len(slots) + len(hold)]
        self._keep(hold, kept)
        if isinstance(made, Launched):
            return self._launched(name, made, exit_file)
        self._await_stage(connection, name, made, hold, exit_file)
        return None

    def _launched(self, name: str, made: Launched, exit_file: str) -> Results:
        exit_ = self._children.add(name, made.pid, made.pidfd, exit_file)
        if exit_ is not None:
            self._publish(exit_)
        return (made.pid,), [made.pidfd]

    def _forget_unanswered(self, connection: Connection, name: str) -> None:
        """Whoever asked for the launch has died meanwhile. The process ends by that, and nobody would free its name."""
        if not connection.open:
            self._forget(connection, [], (name,))

    def _await_stage(
        self, connection: Connection, name: str, stage: Pending, hold: tuple[str, ...], exit_file: str
    ) -> None:
        report = stage.report.fileno()

        def finished(events: int) -> None:
            self._watcher.forget(report)
            try:
                made = stage.finish()
            except (RuntimeFailure, OSError) as e:
                self._children.release(name)
                self._drop_all(hold)
                connection.answer(("error", EIO, str(e)), [])
                return
            results = self._launched(name, made, exit_file)
            connection.answer(("ok", *results[0]), results[1])
            self._forget_unanswered(connection, name)

        connection.suspend()
        self._watcher.watch(report, finished)

    def _hold(self, connection: Connection, fds: list[int], names: tuple[str, ...]) -> Results:
        if len(names) != len(fds):
            raise OSError(EPROTO, "hold request does not match its descriptors")
        self._keep(names, fds[:])
        fds.clear()
        return (), []

    def _keep(self, names: tuple[str, ...], fds: list[int]) -> None:
        for name, fd in zip(names, fds, strict=True):
            old = self._held.get(name)
            self._held[name] = fd
            owner, colon, _ = name.partition(":")
            if colon and old is None:
                self._belongings.setdefault(owner, []).append(name)
            if old is not None:
                os.close(old)

    def _take(self, connection: Connection, fds: list[int], names: tuple[str, ...]) -> Results:
        missing = [name for name in names if name not in self._held]
        if missing:
            raise OSError(ENOENT, f"no descriptor is held as {missing[0]}")
        return (), [self._held[name] for name in names]

    def _drop(self, connection: Connection, fds: list[int], names: tuple[str, ...]) -> Results:
        self._drop_all(names)
        return (), []

    def _drop_all(self, names: Iterable[str]) -> None:
        for name in names:
            fd = self._held.pop(name, -1)
            if fd >= 0:
                os.close(fd)

    def _pidfd(self, connection: Connection, fds: list[int], name: str) -> Results:
        child = self._children.get(name)
        if child is None:
            raise OSError(ENOENT, f"nothing is launched as {name}")
        return (child.pid,), [child.pidfd]

    def _list(self, connection: Connection, fds: list[int]) -> Results:
        exits = tuple([tuple(exit_) for exit_ in self._children.exits()])
        return (self._children.alive(), tuple(self._held), exits), []

    def _subscribe(self, connection: Connection, fds: list[int]) -> None:
        connection.answer(("ok",), [])
        self._subscribers.add(connection)
        for exit_ in self._children.exits():
            connection.push(("exit", *exit_))

    def _forget(self, connection: Connection, fds: list[int], names: tuple[str, ...]) -> Results:
        for name in names:
            self._children.forget(name)
            self._drop_all(self._belongings.pop(name, ()))
        return (), []

    def _stop(self, connection: Connection, fds: list[int], force: bool) -> Results:  # noqa: FBT001
        if self._children.busy() and not force:
            raise OSError(EBUSY, "containers are running")
        self.stopped = True
        return (), []
