"""What containerd's subscribers hear of a task, and in which order."""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.containerd import image
from tests.containerd.rig import NAMESPACE, Containerd
from tests.support import wait


class Event(NamedTuple):
    topic: str
    fields: dict[str, Any]


class Listener:
    """``ctr events``, which is known to listen."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self._data = b""

    def next(self) -> Event:
        while b"\n" not in self._data:
            self._data += wait.read_some(self._fd, what="an event")
        line, self._data = self._data.split(b"\n", 1)
        found = re.search(rf" {re.escape(NAMESPACE)} (/\S+) (\{{.*\}})$", line.decode())
        assert found, line
        return Event(found[1], json.loads(found[2]))

    def of_task(self, container_id: str) -> list[Event]:
        """All up to its deletion."""
        events: list[Event] = []
        while not events or events[-1].topic != "/tasks/delete":
            event = self.next()
            if event.topic.startswith("/tasks/") and event.fields["container_id"] == container_id:
                events.append(event)
        return events

    def exits(self, container_id: str) -> list[tuple[str, int]]:
        """(id, exit status) of its processes, up to the first one's."""
        ends: list[tuple[str, int]] = []
        while not ends or ends[-1][0] != container_id:
            topic, fields = self.next()
            if topic == "/tasks/exit" and fields["container_id"] == container_id:
                ends.append((fields["id"], fields.get("exit_status", 0)))
        return ends

    def has_something(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])


@contextmanager
def listening(containerd: Containerd) -> Iterator[Listener]:
    command = containerd.command("events")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=containerd.environment) as process:
        try:
            listener = Listener(process)
            deadline = time.monotonic() + wait.SECONDS
            # It says nothing when it is ready; so make events until one arrives.
            while not listener.has_something(0.05):
                assert time.monotonic() < deadline
                containerd.ctr("images", "label", image.NAME, f"probe={time.monotonic_ns()}")
            yield listener
        finally:
            process.kill()


def test_life_of_a_task(containerd: Containerd, name: str) -> None:
    with listening(containerd) as listener:
        containerd.detached(name, "sleep", "1000")
        pid = containerd.tasks()[name][0]
        containerd.try_ctr("tasks", "exec", "--exec-id", "e1", name, "sh", "-c", "exit 3")
        containerd.ctr("tasks", "pause", name)
        containerd.ctr("tasks", "resume", name)
        containerd.remove(name)
        events = listener.of_task(name)
    assert [event.topic.removeprefix("/tasks/") for event in events] == [
        *("create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"),
    ]
    ends = [event.fields for event in events if event.topic == "/tasks/exit"]
    assert [(end["id"], end["exit_status"]) for end in ends] == [("e1", 3), (name, 137)]
    assert (events[0].fields["pid"], events[-1].fields["pid"], events[-1].fields["exit_status"]) == (pid, pid, 137)


def test_short_lives(containerd: Containerd, name: str) -> None:
    with listening(containerd) as listener:
        for number in range(5):
            containerd.run(f"{name}-{number}", "sh", "-c", f"exit {number}", flags=["--rm"])
        for number in range(5):
            events = listener.of_task(f"{name}-{number}")
            assert [event.topic.removeprefix("/tasks/") for event in events] == ["create", "start", "exit", "delete"]
            assert events[2].fields.get("exit_status", 0) == number
