"""The daemon as a process: its socket, who may connect, its beginning and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import Box, refused, shell
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.client import Client
from tests.support.daemon import ROOT, Daemon
from tests.support.fifo import Fifos
from tests.support.specs import runc_default

AWAIT_GO = "while [ ! -e /tmp/go ]; do sleep 0.01; done"


def _box(daemon: Daemon, client: Client, place: Path, rootfs: Path, *args: str, writable: bool = False) -> Box:
    spec = runc_default(*args)
    spec["root"]["readonly"] = not writable
    bundle = make_bundle(place / "bundle", spec, rootfs)
    return Box(client, f"box-{os.getpid()}", bundle)


def test_socket_and_folders_are_private(daemon: Daemon) -> None:
    def mode(path: object) -> int:
        return stat.S_IMODE(os.stat(str(path)).st_mode)

    assert mode(daemon.socket) == 0o600
    assert mode(Path(daemon.socket).parent) == 0o700
    assert mode(daemon.state) == 0o700
    assert mode(daemon.state / "containers") == 0o700


def test_other_users_are_turned_away(daemon: Daemon) -> None:
    """Even one who got through the file permissions."""
    as_nobody = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.exit(len(s.recv(1)))"
    )
    os.chmod(daemon.socket, 0o666)
    os.chmod(os.path.dirname(daemon.socket), 0o711)
    try:
        done = subprocess.run([sys.executable, "-c", as_nobody, daemon.socket], capture_output=True, text=True)
    finally:
        os.chmod(os.path.dirname(daemon.socket), 0o700)
        os.chmod(daemon.socket, 0o600)
    assert done.returncode == 0, done.stderr
    assert "refused a connection of uid 65534" in daemon.log_tail()


def test_health_and_reflection(client: Client) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "shimd.v1.Runtime", "containerd.task.v3.Task"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = reflection.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert {"containerd.task.v2.Task", "containerd.task.v3.Task", "shimd.v1.Runtime"} <= names
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="shimd.v1.Runtime")
    [answer] = reflection.ServerReflectionInfo(iter([request]))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_unknown_method(client: Client) -> None:
    call = client.channel.unary_unary("/shimd.v1.Runtime/Nothing", lambda b: b, lambda b: b)
    with refused("UNIMPLEMENTED"):
        call(b"")


def test_too_long_a_message_is_refused(place: Path) -> None:
    with Daemon(place / "daemon", config="[api]\nmax_message_bytes = 65536") as daemon, daemon.client() as client:
        with refused("RESOURCE_EXHAUSTED"):
            client.runtime.Plan(api.PlanRequest(spec=bytes(70_000)))
        assert client.runtime.Version(api.VersionRequest()).pid == daemon.pid


def test_second_daemon_on_the_same_state_is_refused(daemon: Daemon, place: Path) -> None:
    command = [sys.executable, "-m", "shimd.daemon", "--state", str(daemon.state), "--socket", str(place / "s")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"in use by another daemon (process {daemon.pid})" in done.stderr
    assert "--state" in done.stderr


def test_second_daemon_on_the_same_socket_is_refused(daemon: Daemon, place: Path) -> None:
    command = [sys.executable, "-m", "shimd.daemon", "--state", str(place / "state"), "--socket", daemon.socket]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "somebody else listens" in done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("nonsense = 1", ["unknown key nonsense"]),
        ("[log]\nlevel = 'loud'\nfoo = 1", ["log.level must be one of", "unknown key log.foo"]),
        ("[runtime]\nworkers = 'x'", ["runtime.workers must be of type int"]),
        ("socket = [", ["config.toml"]),
    ],
)
def test_bad_settings_are_refused(place: Path, config: str, words: list[str]) -> None:
    (place / "config.toml").write_text(config)
    command = [sys.executable, "-m", "shimd.daemon", "--config", str(place / "config.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_missing_settings_that_were_asked_for(place: Path) -> None:
    command = [sys.executable, "-m", "shimd.daemon", "--config", str(place / "nowhere.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "no such file" in done.stderr) == (1, True)


def test_json_log(place: Path) -> None:
    with Daemon(place / "daemon", config='[log]\nformat = "json"') as daemon:
        lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert any(line["message"].startswith("serving") and line["level"] == "info" for line in lines)


def test_socket_activation(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "activated"))
        listener.listen()
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), "
            "LISTEN_FDS='1'); os.execv(sys.executable, [sys.executable, '-m', 'shimd.daemon', *sys.argv[2:]])"
        )
        arguments = ["--state", str(place / "state"), "--socket", str(place / "unused")]
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno()), *arguments],
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
    try:
        with Client(str(place / "activated")) as client:
            answer = client.runtime.Version(api.VersionRequest(), timeout=20)
            assert answer.pid == process.pid
        assert not (place / "unused").exists()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        os.kill(answer.keeper_pid, signal.SIGTERM)
        wait.process_gone(answer.keeper_pid)
    assert (place / "activated").exists(), "systemd's socket is systemd's to remove"


def test_end_leaves_containers_running_and_the_next_daemon_finds_them(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, "sleep", "1000")
            pid = b.make()
            b.start()
        daemon.stop()
        assert not os.path.exists(daemon.socket)
        os.kill(pid, 0)
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            assert (b.status(), b.state().pid) == ("RUNNING", pid)
            waiting = b.waiting()
            b.kill()
            assert waiting.result().exit_status == 137
            assert b.topics() == ["/tasks/exit"]
            b.delete()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_output_goes_on_over_a_restart(place: Path, busybox: Path, end: str) -> None:
    """A program that writes while no daemon runs neither dies of it nor loses a byte."""
    with Daemon(place / "daemon") as daemon, Fifos(place / "fifos") as fifos:
        with daemon.client() as client:
            script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; seq 1 50000; echo bad >&2; exit 6"
            b = _box(daemon, client, place, busybox, *shell(script), writable=True)
            b.make(stdout=fifos.stdout, stderr=fifos.stderr)
            b.start()
            assert fifos.stdout_until(b"one\n") == b"one\n"
        getattr(daemon, end)()
        (busybox / "tmp/go").touch()
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            expected = b"".join(b"%d\n" % number for number in range(1, 50001))
            assert fifos.stdout_until(b"\n50000\n") == expected
            assert b.wait() == 6
            b.delete()
            assert fifos.read_stderr() == b"bad\n"


def test_terminal_goes_on_over_a_restart(place: Path, busybox: Path) -> None:
    spec = runc_default(*shell("read a; echo got $a; exit 5"), terminal=True)
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = Box(client, "terminal", make_bundle(place / "bundle", spec, busybox))
            b.make(terminal=True, stdin="attach:", stdout="attach:")
            b.start()
        daemon.stop()
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            target = api.AttachRequest(target=api.AttachTarget(id=b.id))
            events = list(client.runtime.Attach(iter([target, api.AttachRequest(stdin=b"x\n")])))
            assert b"got x" in b"".join(event.output.data for event in events)
            assert events[-1].exited.exit_status == 5
            b.delete()


def test_exit_while_no_daemon_runs_is_known_to_the_next(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, *shell(f"{AWAIT_GO}; exit 9"), writable=True)
            pid = b.make()
            b.start()
        daemon.kill()
        (busybox / "tmp/go").touch()
        wait.process_gone(pid)
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            assert (b.status(), b.wait(), b.state().exit_status) == ("STOPPED", 9, 9)
            [(topic, told)] = b.events()
            assert (topic, told.id, told.pid, told.exit_status) == ("/tasks/exit", b.id, pid, 9)
            at = told.exited_at
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            assert (b.topics(), b.wait(), b.state().exited_at) == ([], 9, at)
            b.delete()


def test_execs_are_known_to_the_next_daemon(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon, Fifos(place / "fifos") as fifos:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, "sleep", "1000", writable=True)
            b.make()
            b.start()
            b.exec(
                "goes-on", *shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"), stdout=fifos.stdout
            )
            b.exec("ends", *shell(f"{AWAIT_GO}; exit 4"))
            b.exec("told", *shell("exit 5"))
            b.exec("terminal", *shell("read a; exit $a"), terminal=True, stdin="attach:", stdout="attach:")
            pids = {name: b.start(name) for name in ("goes-on", "ends", "told", "terminal")}
            assert b.wait("told") == 5
            assert fifos.stdout_until(b"ready\n") == b"ready\n"
        daemon.kill()
        (busybox / "tmp/go").touch()
        wait.process_gone(pids["ends"])
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            [(_, told)] = b.events()
            assert (told.id, told.pid, told.exit_status) == ("ends", pids["ends"], 4)
            assert {name: b.state(name).pid for name in pids} == pids
            states = [b.status(name) for name in pids]
            assert states == ["RUNNING", "STOPPED", "STOPPED", "RUNNING"]
            assert (b.wait("ends"), b.wait("told")) == (4, 5)
            assert {found.pid for found in b.pids() if found.HasField("info")} == {pids["goes-on"], pids["terminal"]}
            target = api.AttachRequest(target=api.AttachTarget(id=b.id, exec_id="terminal"))
            events = list(client.runtime.Attach(iter([target, api.AttachRequest(stdin=b"6\n")])))
            assert events[-1].exited.exit_status == 6
            b.kill(15, "goes-on")
            assert b.wait("goes-on") == 3
            for name in pids:
                b.delete(name)
            b.kill()
            assert b.wait() == 137
            b.delete()


@pytest.mark.parametrize("of_exec", [False, True], ids=["init", "exec"])
def test_input_goes_on_over_a_restart(place: Path, busybox: Path, *, of_exec: bool) -> None:
    """A client may even write while no daemon runs."""
    exec_id = "e" if of_exec else ""
    program = shell("read a; read b; read c; cat; echo $a $b $c")
    with Daemon(place / "daemon") as daemon, Fifos(place / "fifos", stdin=True) as fifos:
        streams: dict[str, Any] = {"stdin": fifos.stdin, "stdout": fifos.stdout}
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, *(("sleep", "1000") if of_exec else program))
            b.make(**({} if of_exec else streams))
            b.start()
            if of_exec:
                b.exec(exec_id, *program, **streams)
                b.start(exec_id)
            fifos.write(b"one\n")
        daemon.kill()
        fifos.write(b"two\n")
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            fifos.write(b"three\nrest\n")
            b.task.CloseIO(task.CloseIORequest(id=b.id, exec_id=exec_id, stdin=True))
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            fifos.write(b"more\n")
            assert b.status(exec_id) == "RUNNING"
            fifos.close_stdin()
            assert b.wait(exec_id) == 0
            assert fifos.stdout_until(b"three\n") == b"rest\nmore\none two three\n"
            b.remove()


def test_exit_after_the_loss_of_daemon_and_keeper_is_told(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, "sleep", "1000")
            pid = b.make()
            b.start()
        daemon.kill()
        keeper = daemon.keeper_pid()
        os.kill(keeper, signal.SIGKILL)
        wait.process_gone(keeper)
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            assert b.status() == "RUNNING"
            os.kill(pid, signal.SIGKILL)
            assert b.wait() in (137, 255)
            b.delete()


def test_created_container_can_be_started_by_the_next_daemon(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, *shell("exit 4"))
            b.make()
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            b = Box(client, b.id, b.bundle)
            assert b.status() == "CREATED"
            b.start()
            assert b.wait() == 4
            b.delete()


def test_death_of_the_keeper(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon, daemon.client() as client:
        b = _box(daemon, client, place, busybox, "sleep", "1000")
        pid = b.make()
        b.start()
        keeper = daemon.keeper_pid()
        os.kill(keeper, signal.SIGKILL)
        wait.process_gone(keeper)
        assert b.status() == "RUNNING"
        b.kill()
        assert b.wait() in (137, 255)
        wait.process_gone(pid)
        b.delete()
        b.make()
        b.start()
        b.kill()
        assert b.wait() == 137
        b.delete()


def test_end_does_not_wait_for_those_who_wait(place: Path, busybox: Path) -> None:
    with Daemon(place / "daemon") as daemon:
        with daemon.client() as client:
            b = _box(daemon, client, place, busybox, "sleep", "1000")
            b.make()
            b.start()
            waiting = b.waiting()
            events = client.runtime.Events(api.EventsRequest(since=2))
            assert next(events).topic == "/tasks/start"
            daemon.stop()
            error: Any = waiting.exception()
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert list(events) == []
        daemon.start()
        with daemon.client() as client:
            client.task.Shutdown(task.ShutdownRequest(id=b.id, now=True))
