"""The ttrpc socket of a real daemon: who may come in, and what broken clients can do."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

from shimd.api.containerd import task_v3_pb2 as api
from shimd.api.containerd import ttrpc_pb2 as wire
from tests.support import wait
from tests.support.client import Client
from tests.support.daemon import ROOT, Daemon
from tests.support.ttrpc import DATA, HEADER, REQUEST, Connection, TtrpcClient

TASK = "containerd.task.v3.Task"
RESOURCE_EXHAUSTED, INVALID_ARGUMENT, UNIMPLEMENTED = 8, 3, 12
MAX_PAYLOAD = 4 << 20


def connect_request(service: str = TASK) -> bytes:
    payload = api.ConnectRequest(id="x").SerializeToString()
    return wire.Request(service=service, method="Connect", payload=payload).SerializeToString()


def works(connection: Connection, stream: int) -> None:
    connection.send(stream, connect_request())
    got, response = connection.receive()
    assert (got, response.status.code) == (stream, 0)


def test_socket_is_private(daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.ttrpc).st_mode) == 0o600


def test_other_users_are_turned_away(daemon: Daemon) -> None:
    """Even one who got through the file permissions; root may, whatever its group."""
    program = (
        "import os, socket, sys\n"
        "uid, gid = map(int, sys.argv[2:])\n"
        "os.setgroups([]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "try:\n"
        f"    s.send({HEADER.pack(0, 1, REQUEST, 0)!r})\n"
        "    sys.exit(len(s.recv(1)))\n"
        "except (BrokenPipeError, ConnectionResetError):\n"
        "    sys.exit(0)"
    )
    os.chmod(daemon.ttrpc, 0o666)
    os.chmod(os.path.dirname(daemon.ttrpc), 0o711)
    try:
        for uid, gid, code in ((65534, 65534, 0), (65534, 0, 0), (0, 65534, 1)):
            done = subprocess.run([sys.executable, "-c", program, daemon.ttrpc, str(uid), str(gid)], check=False)
            assert done.returncode == code
    finally:
        os.chmod(os.path.dirname(daemon.ttrpc), 0o700)
        os.chmod(daemon.ttrpc, 0o600)
    assert "refused a connection of uid 65534" in daemon.log_tail()


def test_protocol_errors_are_answered_and_the_connection_goes_on(daemon: Daemon) -> None:
    with Connection(daemon.ttrpc) as connection:
        for stream, payload, kind, code in (
            (2, connect_request(), REQUEST, INVALID_ARGUMENT),
            (1, b"\xff\xff", REQUEST, INVALID_ARGUMENT),
            (1, connect_request(), REQUEST, INVALID_ARGUMENT),  # used before
            (3, connect_request("containerd.task.v9.Task"), REQUEST, UNIMPLEMENTED),
            (5, bytes(MAX_PAYLOAD + 1), REQUEST, RESOURCE_EXHAUSTED),
            (9, b"data", DATA, INVALID_ARGUMENT),
        ):
            connection.send(stream, payload, kind=kind)
            got, response = connection.receive()
            assert (got, response.status.code) == (stream, code)
        works(connection, 11)


def test_clients_that_stop_in_the_middle_harm_nobody(daemon: Daemon) -> None:
    frame = HEADER.pack(len(connect_request()), 1, REQUEST, 0) + connect_request()
    with Connection(daemon.ttrpc) as good:
        half_done = [Connection(daemon.ttrpc) for _ in range(20)]
        for number, connection in enumerate(half_done):
            connection.socket.sendall(frame[: 1 + number * 3])
        works(good, 1)
        for connection in half_done:
            connection.socket.close()
        works(good, 3)


def test_client_that_never_reads_harms_nobody(daemon: Daemon) -> None:
    with Connection(daemon.ttrpc) as greedy, Connection(daemon.ttrpc) as good:
        greedy.socket.settimeout(0.5)
        frame = HEADER.pack(len(connect_request()), 0, REQUEST, 0) + connect_request()  # even: refused in many words
        try:
            for _ in range(100_000):
                greedy.socket.sendall(frame * 100)
        except TimeoutError:
            works(good, 1)
            return
    raise AssertionError("the daemon reads for ever")


def test_daemon_ends_while_clients_wait(place: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with Connection(daemon.ttrpc) as connection:
            works(connection, 1)
            daemon.stop()
            assert connection.socket.recv(1) == b""
        assert not os.path.exists(daemon.ttrpc)


def test_socket_activation_by_name(place: Path) -> None:
    """Whatever order systemd has them in."""
    code = (
        "import os, sys; os.dup2(int(sys.argv[2]), 90); os.dup2(int(sys.argv[1]), 3); os.dup2(90, 4); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='ttrpc:shimd.socket'); "
        "os.execv(sys.executable, [sys.executable, '-m', 'shimd.daemon', *sys.argv[3:]])"
    )
    with socket.socket(socket.AF_UNIX) as ttrpc, socket.socket(socket.AF_UNIX) as grpc:
        for listener, name in ((ttrpc, "ttrpc"), (grpc, "grpc")):
            listener.bind(str(place / name))
            listener.listen()
        fds = [ttrpc.fileno(), grpc.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, fds), "--state", str(place / "state"), "--socket", str(place / "s")],
            cwd=ROOT,
            pass_fds=fds,
            stderr=subprocess.DEVNULL,
        )
    try:
        with TtrpcClient(str(place / "ttrpc")) as client:
            assert client.task.Connect(api.ConnectRequest(id="x")).shim_pid == process.pid
        with Client(str(place / "grpc")) as over_grpc:
            assert over_grpc.task.Connect(api.ConnectRequest(id="x")).shim_pid == process.pid
            assert not list(place.glob("s*.sock"))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(place / "state" / "keeper.sock"))
            pid = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
        os.kill(pid, signal.SIGTERM)
        wait.process_gone(pid)
    assert (place / "ttrpc").exists(), "systemd's socket is systemd's to remove"
