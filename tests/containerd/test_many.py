"""Many containers at once, half of them killed: every end is told once, in order, as it was, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.containerd.conftest import running
from tests.containerd.rig import IS_RUNC, NAMESPACE, Containerd
from tests.containerd.test_events import Event, Listener, listening
from tests.support.leaks import cgroup_mount_points

COUNT = 300
POOL = 4
# The keeper's spare process: there is none at times, or a channel to it and its pidfd.
SPARE: tuple[Counter[str], ...] = (Counter(), Counter({"seqpacket": 1, "anon_inode:[pidfd]": 1}))
AT_ONCE = 8
SO_ACCEPTCON = 0x10000  # flag of a socket that listens, in /proc/net/unix
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
        after = descriptors(containerd)
        for mine, then in zip(after, before, strict=True):
            assert mine.rest == then.rest
        daemons, keepers = after
        # Calls to the keeper borrow connections of a pool, which keeps so many; one more is for exits.
        assert 1 < daemons.connections <= POOL + 1
        assert keepers.connections == daemons.connections
        assert keepers.spare in SPARE


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


class Descriptors(NamedTuple):
    """Of a process, by what they lead to: its other one of the two, a spare process, all else."""

    connections: int
    spare: Counter[str]
    rest: Counter[str]


def descriptors(containerd: Containerd) -> list[Descriptors]:
    """Of the daemon and its keeper."""
    if IS_RUNC:
        return []
    daemon = targets(containerd.daemon.pid)
    keeper = targets(containerd.daemon.keeper_pid())
    # The daemon's ends of the connections have no names; nothing else of it is such a socket.
    connections = daemon.pop("seqpacket", 0)
    accepted = keeper.pop(f"seqpacket {containerd.daemon.state}/keeper.sock", 0)
    spare = Counter({kind: count for kind in SPARE[1] if (count := keeper.pop(kind, 0))})
    return [Descriptors(connections, Counter(), daemon), Descriptors(accepted, spare, keeper)]


def targets(pid: int) -> Counter[str]:
    """What the descriptors lead to, without the numbers that tell one pipe or socket from another; how many each."""
    sockets = unix_sockets()
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        target = os.readlink(entry.path)
        kind, _, number = target.removesuffix("]").partition(":[")
        found[sockets.get(number, kind) if number.isdigit() else target] += 1
    return found


def unix_sockets() -> dict[str, str]:
    """Type, or that it listens, and the name if it has one, by inode number."""
    types = {"0001": "stream", "0002": "datagram", "0005": "seqpacket"}
    with open("/proc/net/unix") as file:
        rows = [line.split() for line in file][1:]
    listening = {row[6]: "listening" for row in rows if int(row[3], 16) & SO_ACCEPTCON}
    return {row[6]: " ".join((listening.get(row[6], types[row[4]]), *row[7:])) for row in rows}
