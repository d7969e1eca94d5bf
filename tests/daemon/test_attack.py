"""Against the daemon: by its sockets, from the host's network, by other users of the machine, by what costs memory."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clients.containerd_shim import places, spawn
from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import containerd_pb2
from tests.daemon.boxes import MakeBox
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.fifo import Fifos
from tests.support.specs import runc_default
from tests.support.ttrpc import TtrpcClient

LISTENS = 0x10000  # __SO_ACCEPTCON of /proc/net/unix


# ---- sockets --------------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    """A Unix socket that others can name."""

    inode: str
    name: str
    listens: bool


def named_sockets(table: str) -> list[Named]:
    """Of a text of /proc/net/unix."""
    rows = [line.split(maxsplit=7) for line in table.splitlines()[1:]]
    return [Named(row[6], row[7], bool(int(row[3], 16) & LISTENS)) for row in rows if len(row) == 8]


def inodes(*pids: int) -> set[str]:
    """Of the sockets that these processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # a spare process of the keeper's has just become a container
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {link[8:-1] for link in found if link.startswith("socket:[")}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def on_the_hosts_network(*args: str) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "network"]
    return spec


@pytest.fixture
def entrance(daemon: Daemon, place: Path) -> str:
    """What a containerd has: a socket of its own, through which calls say where they come from."""
    request = containerd_pb2.RegisterRequest(
        ttrpc_address=str(place / "nobody"), grpc_address="/nowhere", namespace="default"
    )
    with daemon.ttrpc_client() as client:
        return str(client.containerds.Register(request).grpc_socket)


def connect(client: Client | TtrpcClient) -> None:
    client.task.Connect(task.ConnectRequest(id="x"))


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_cve_2020_15257_a_container_on_the_hosts_network_reaches_nobody(
    box: MakeBox, daemon: Daemon, entrance: str, place: Path
) -> None:
    """Abstract names belong to a network namespace: no file mode protects them, and a container may be in it."""
    waiting = box("sleep", "1000")
    b = box(spec=on_the_hosts_network("cat", "/proc/net/unix"))
    with Client(entrance) as through, Fifos(place / "fifos", stderr=False) as fifos:
        connect(through)
        ours = inodes(daemon.pid, daemon.keeper_pid(), *children(daemon.keeper_pid()), waiting.make())
        b.make(stdout=fifos.stdout)
        b.start()
        found = [sock for sock in named_sockets(fifos.read_stdout().decode()) if sock.inode in ours]
        b.wait()
        b.delete()
        abstract = [sock.name for sock in found if sock.name.startswith("@")]
        assert abstract, "the connection of a containerd was to be among them"
        for name in abstract:
            with socket.socket(socket.AF_UNIX) as attacker, pytest.raises(ConnectionRefusedError):
                attacker.connect("\0" + name[1:])
        listening = {sock.name for sock in found if sock.listens}
        assert listening >= {daemon.socket, daemon.ttrpc, entrance}, "the table is that of another namespace"
        assert all(name.startswith("/") for name in listening), listening
        for path in (*map(Path, filter(os.path.exists, listening)), *daemon.state.rglob("*.sock")):
            assert mode(path) == 0o600 or mode(path.parent) == 0o700, path


def test_cve_2020_15257_nobody_takes_the_name_of_the_next_connection(daemon: Daemon, entrance: str) -> None:
    """A container on the host's network reads the names in use, and takes those that could come next."""
    with Client(entrance) as first, contextlib.ExitStack() as taken:
        connect(first)
        table = named_sockets(Path("/proc/net/unix").read_text())
        names = [sock.name for sock in table if sock.name.startswith("@") and sock.inode in inodes(daemon.pid)]
        for number in range(100):
            attacker = taken.enter_context(socket.socket(socket.AF_UNIX))
            with contextlib.suppress(OSError):
                attacker.bind(f"\0{names[0][1:].rpartition('/')[0]}/{number}")
        with Client(entrance) as second:
            connect(second)


def test_cve_2020_15257_the_launcher_believes_nobody_on_the_hosts_network(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who tells it that the daemon is ready: an abstract name would be open to all."""
    state, found = place / "state", []
    (place / "config.toml").write_text(f'state = "{state}"\nsocket = "{state}/s.sock"\n')
    monkeypatch.setenv("SHIMD_CONFIG", str(place / "config.toml"))
    monkeypatch.setenv("SHIMD_LOG", str(place / "log"))
    monkeypatch.setattr(spawn, "_become_daemon", lambda *_: os._exit(1))

    def await_ready(pid: int, notify: socket.socket, _: str) -> None:
        os.waitpid(pid, 0)
        found.append((notify.getsockname(), mode(notify.getsockname())))

    monkeypatch.setattr(spawn, "_await_ready", await_ready)
    with pytest.raises(FileNotFoundError):
        spawn.connect_or_start(places.find(), 1)
    assert found == [(f"{state}/ready.sock", 0o600)]
    assert mode(state) == 0o700
    assert sorted(os.listdir(state)) == ["launcher.lock"]
