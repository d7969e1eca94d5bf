"""Many containers at once, half of them killed: every end is told once, in order, as it was, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.containerd.conftest import running
from tests.containerd.rig import IS_RUNC, NAMESPACE, Containerd
from tests.containerd.test_events import Event, Listener, listening
from tests.support.leaks import cgroup_mount_points

COUNT = 300
POOL, SPARE = 4, 2
AT_ONCE = 8
TOPICS: tuple[str, ...] = ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
if IS_RUNC:  # whose shim may end before it has sent the last event
    TOPICS = TOPICS[:3]


@pytest.fixture
def containerd(_test_leaves_nothing: None) -> Iterator[Containerd]:
    """One is enough: all versions call the daemon in the same way."""
    yield from running("2", Containerd)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_hundred(containerd: Containerd) -> None:
    with listening(containerd) as listener:
        run_all(containerd, listener, [f"first-{number}" for number in range(2 * AT_ONCE)])
        before = descriptors(containerd)
        names = [f"c-{number}" for number in range(COUNT)]
        events = run_all(containerd, listener, names)
    for name in names:
        code = expected_code(name)
        topics = [event.topic.removeprefix("/tasks/") for event in events[name]]
        assert topics == [topic.removeprefix("/tasks/") for topic in TOPICS], name
        fields = [event.fields for event in events[name]]
        assert {each["pid"] for each in fields} == {fields[0]["pid"]}, name
        assert [each.get("exit_status", 0) for each in fields[2:]] == [code] * (len(TOPICS) - 2), name
    assert containerd.tasks() == {}
    assert containerd.ctr("containers", "ls", "-q") == ""
    for point in cgroup_mount_points():
        assert not [entry.path for entry in os.scandir(f"{point}/{NAMESPACE}") if entry.is_dir()]
    if not IS_RUNC:
        assert list((containerd.daemon.state / "containers" / NAMESPACE).iterdir()) == []
        # Calls to the keeper borrow connections of a pool, which keeps four at most and had one at least before. The
        # keeper may have its spare process now, two descriptors, and not then.
        grown = [after - once for after, once in zip(descriptors(containerd), before, strict=True)]
        assert grown[0] <= POOL - 1, grown
        assert grown[1] <= POOL - 1 + SPARE, grown


def expected_code(name: str) -> int:
    """Odd ones are killed."""
    number = int(name.rpartition("-")[2])
    return 128 + signal.SIGKILL if number % 2 else number // 2 % 100


def run_all(containerd: Containerd, listener: Listener, names: list[str]) -> dict[str, list[Event]]:
    """Each container's events, of all that came until the last one of the last container."""
    events: dict[str, list[Event]] = defaultdict(list)
    left = set(names)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(run, containerd, name) for name in names]
        while left:
            event = listener.next()
            if not event.topic.startswith("/tasks/"):
                continue
            name = event.fields["container_id"]
            if event.topic in TOPICS:
                events[name].append(event)
            if event.topic == "/tasks/start" and expected_code(name) == 128 + signal.SIGKILL:
                os.kill(event.fields["pid"], signal.SIGKILL)
            if event.topic == TOPICS[-1]:
                left.discard(name)
        for done in runs:
            done.result()
    return events


def run(containerd: Containerd, name: str) -> None:
    code = expected_code(name)
    command = ["sleep", "1000"] if code == 128 + signal.SIGKILL else ["sh", "-c", f"exit {code}"]
    done = containerd.run(name, *command, flags=["--rm"])
    assert (done.returncode, done.stderr) == (code, ""), name


def descriptors(containerd: Containerd) -> list[int]:
    """How many the daemon and its keeper have."""
    if IS_RUNC:
        return []
    pids = (containerd.daemon.pid, containerd.daemon.keeper_pid())
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
