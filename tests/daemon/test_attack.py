"""Against the daemon: by its sockets, from the host's network, by other users of the machine, by what costs memory."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clients.containerd_shim import places, spawn
from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import containerd_pb2
from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import Box, MakeBox
from tests.support.bundle import make_bundle
from tests.support.client import Client
from tests.support.daemon import ROOT, Daemon
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


# ---- files ----------------------------------------------------------------------------------------------------------


def test_cve_2021_41103_cve_2024_25621_modes_are_mended_at_the_start(place: Path, busybox: Path) -> None:
    """What an earlier version, or somebody's mkdir, has left open to all."""
    state = place / "daemon/state"
    folders = (state, state / "containers", state / "containerds")
    for folder in folders:
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    mask = os.umask(0)
    try:
        with Daemon(place / "daemon") as daemon, daemon.client() as client:
            assert [mode(folder) for folder in folders] == [0o700] * 3
            b = Box(client, f"box-{os.getpid()}", make_bundle(place / "bundle", runc_default("sleep", "1000"), busybox))
            b.make()
            loose = [path for path in state.rglob("*") if not path.is_symlink() and mode(path) & 0o022]
            assert loose == []
            b.remove()
    finally:
        os.umask(mask)


def test_state_of_another_user_is_refused(place: Path) -> None:
    """Who owns a folder can put anything into it, whatever its mode."""
    state = place / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 1000, 1000)
    command = [sys.executable, "-m", "shimd.daemon", "--state", str(state), "--socket", str(place / "s")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "belongs to another user" in done.stderr) == (1, True)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_cve_2026_53488_nothing_of_a_config_is_where_output_goes(box: MakeBox, place: Path) -> None:
    """Annotations come from labels of an image; only the call that creates a container says what its streams are."""
    evil = place / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {place}/ran\n")
    evil.chmod(0o755)
    spec = runc_default("echo", "out")
    names = ("containerd.io/restart.loguri", "io.containerd.log-uri", "loguri", "stdout", "shimd.stdout")
    spec["annotations"] = dict.fromkeys(names, f"binary://{evil}")
    b = box(spec=spec)
    b.make()
    b.start()
    assert b.wait() == 0
    b.delete()
    assert not (place / "ran").exists()


# ---- memory ---------------------------------------------------------------------------------------------------------

BOUND = 8 << 20  # bytes that the daemon may grow by


def memory(pid: int) -> int:
    """The resident bytes of its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


@pytest.fixture
def endless(box: MakeBox) -> Box:
    """A container that writes as fast as it can to a terminal that clients of the daemon may attach to."""
    b = box(spec=runc_default("yes", "x" * 1000, terminal=True))
    b.make(terminal=True, stdin="attach:", stdout="attach:")
    b.start()
    return b


def attach(b: Box) -> Any:
    return b.client.runtime.Attach(iter([api.AttachRequest(target=api.AttachTarget(id=b.id))]))


def test_cve_2022_31030_readers_that_never_read(endless: Box, daemon: Daemon) -> None:
    with contextlib.ExitStack() as calls:
        before = memory(daemon.pid)
        for _ in range(30):
            call = attach(endless)
            calls.callback(call.cancel)
            next(call)
        for _ in range(200):
            endless.state()
        assert memory(daemon.pid) - before < BOUND


def test_cve_2022_23471_cve_2025_64329_clients_that_go_away(endless: Box, daemon: Daemon) -> None:
    """Of each of them something could stay: a task, a descriptor, a buffer."""

    def visit(count: int) -> tuple[int, int]:
        for number in range(count):
            call = attach(endless)
            next(call)
            endless.task.ResizePty(task.ResizePtyRequest(id=endless.id, width=80 + number, height=24))
            endless.waiting().cancel()
            call.cancel()
        connect(endless.client)
        return memory(daemon.pid), len(os.listdir(f"/proc/{daemon.pid}/fd"))

    before, descriptors = visit(50)
    after, more = visit(300)
    assert after - before < BOUND
    assert more - descriptors < 10


def test_cve_2022_31030_output_that_nobody_reads(box: MakeBox, daemon: Daemon, place: Path) -> None:
    """In a FIFO, and in the daemon until a client attaches; of an exec, too."""
    before = memory(daemon.pid)
    with Fifos(place / "fifos") as fifos:
        b = box("yes", "x" * 1000)
        b.make(stdout=fifos.stdout, stderr=fifos.stderr)
        b.start()
        b.exec("e", "/usr/bin/yes", "x" * 1000, stdout="attach:")
        b.start("e")
        for _ in range(300):
            b.state("e")
        assert memory(daemon.pid) - before < BOUND
        b.kill()
        b.wait()
        b.delete("e")
        deleting = b.task.Delete.future(task.DeleteRequest(id=b.id))
        while not deleting.done():  # it waits for a reader, for a while
            if select.select([fifos.stdout_fd()], [], [], 0.01)[0]:
                os.read(fifos.stdout_fd(), 1 << 20)
        deleting.result()
