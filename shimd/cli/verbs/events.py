"""``events``: figures of a container every few seconds, and word of its OOM kills."""

from __future__ import annotations

import json
import select
import time

from shimd.cli.command import ID_ARGUMENT, Call, Command, flag, text
from shimd.cli.parse import UsageError
from shimd.errors import FailedPrecondition, InvalidArgument, RuntimeFailure, ShimdError
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.cgroups.stats import Stats
    from shimd.runtime.model import Container

_LONGEST_POLL = 1_000_000  # seconds, 11 days; poll(2) takes no more than 24

COMMAND = Command(
    "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    ID_ARGUMENT,
    description="""Prints one JSON object a line: figures, by default every 5 seconds, and OOM kills, until
no process of the container is left.""",
    options=(
        text("interval", "set the stats collection interval", default="5s"),
        flag("stats", "display the container's stats then exit"),
    ),
    least=1,
    most=1,
)


def run(call: Call) -> int:
    interval = _interval(call.text("interval"))
    with call.container() as container:
        stats = call.runtime().stats(container)  # refuses a container that is stopped
        if call.flag("stats"):
            _print(call, container, "stats", _document(container, stats))
        else:
            _Follower(call, container, interval).run()
    return 0


def _interval(value: str) -> float:
    from shimd.cli.units import duration

    try:
        interval = duration(value)
    except InvalidArgument as error:
        reason = f'invalid value "{value}" for flag -interval: {error}'
        raise UsageError(reason, reason=reason) from None
    if interval <= 0:
        raise InvalidArgument("duration interval must be greater than 0")
    return interval


def _document(container: Container, stats: Stats) -> dict[str, Any]:
    from shimd.cli.stats import stats_document

    if not container.state.intel_rdt_path:
        return stats_document(stats)
    from shimd.runtime import rdt, rdt_stats

    return stats_document(stats, rdt_stats.read(rdt.group_of(container.state)))


def _print(call: Call, container: Container, kind: str, data: dict[str, Any] | None = None) -> None:
    event: dict[str, Any] = {"type": kind, "id": container.id}
    if data is not None:
        event["data"] = data
    call.write(json.dumps(event, separators=(",", ":"), ensure_ascii=False) + "\n")


class _Follower:
    """Waits for the next interval, an OOM kill and the death of init at once."""

    def __init__(self, call: Call, container: Container, interval: float) -> None:
        self._call = call
        self._container = container
        self._interval = interval
        self._poll = select.poll()
        self._poll.register(container.pidfd, select.POLLIN)

    def run(self) -> None:
        try:
            watch = self._container.cgroup.oom_watch()
        except (FailedPrecondition, RuntimeFailure) as error:
            self._call.messages.warn(str(error))
            self._follow(lambda: 0)
            return
        self._poll.register(watch.fileno(), select.POLLIN)
        try:
            self._follow(watch.consume)
        finally:
            watch.close()

    def _follow(self, kills: Any) -> None:
        due = time.monotonic() + self._interval
        while self._lives():
            ready = dict(self._poll.poll(min(max(0.0, due - time.monotonic()), _LONGEST_POLL) * 1000))
            for _ in range(kills()):
                _print(self._call, self._container, "oom")
            if self._container.pidfd in ready:
                self._poll.unregister(self._container.pidfd)
            if time.monotonic() >= due:
                due += self._interval
                if self._lives():
                    self._print_stats()

    def _lives(self) -> bool:
        return bool(self._call.runtime().pids(self._container))

    def _print_stats(self) -> None:
        try:
            document = _document(self._container, self._call.runtime().stats(self._container))
        except ShimdError as error:  # init has ended, others go on; or a counter has no value at the moment
            self._call.messages.warn(str(error))
        else:
            _print(self._call, self._container, "stats", document)
