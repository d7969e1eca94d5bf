"""What engines hand to the runtime and are handed: sockets, pid files, descriptors."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.boxes import OURS_ONLY, Box, has_option
from tests.support import wait

pidfd_socket = pytest.mark.skipif(not has_option("create", "--pidfd-socket"), reason="$RUNTIME has no --pidfd-socket")


class Listener:
    """A unix socket that is sent one descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(1)
        self._socket.settimeout(wait.SECONDS)

    def receive(self) -> tuple[bytes, int]:
        """The bytes that came with the descriptor, and it."""
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(wait.SECONDS)
            data, fds, _, _ = socket.recv_fds(connection, 4096, 2)
            assert connection.recv(1) == b""
        (fd,) = fds
        return data, fd

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(place: Path) -> Iterator[Listener]:
    opened = Listener(place / "socket")
    yield opened
    opened.close()


def test_the_console_socket_gets_the_master_of_the_terminal(box: Box, listener: Listener) -> None:
    box.spec["process"]["terminal"] = True
    box.shell("tty; read x; echo got $x")
    box.start("--console-socket", listener.path)
    name, master = listener.receive()
    assert name in (b"/dev/pts/0", b"/dev/pts/ptmx", b"/dev/ptmx")
    assert wait.read_until(master, b"\n") == b"/dev/pts/0\r\n"
    attributes = termios.tcgetattr(master)
    assert attributes[1] & termios.ONLCR  # the receiver decides
    os.write(master, b"typed\n")
    wait.read_until(master, b"got typed")
    os.close(master)


def test_the_console_socket_of_a_detached_exec(box: Box, listener: Listener) -> None:
    box.start()
    answer = box.exec("-d", "-t", "--console-socket", listener.path, "--", "sh", "-c", "tty; sleep 1000")
    assert answer.code == 0, answer
    _, master = listener.receive()
    assert wait.read_until(master, b"\n") == b"/dev/pts/0\r\n"
    os.close(master)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_console_socket_that_nobody_listens_at(box: Box, place: Path, verb: str) -> None:
    box.spec["process"]["terminal"] = True
    box.write()
    detach = ["-d"] if verb == "run" else []
    command = (verb, *detach, "--bundle", str(box.bundle), "--console-socket", str(place / "none"), box.id)
    assert "none" in box.runtime.fails(*command)
    assert os.listdir(box.runtime.root) == []


@pidfd_socket
@pytest.mark.parametrize("verb", ["create", "run"])
def test_the_pidfd_socket_gets_a_pidfd_of_init(box: Box, listener: Listener, verb: str) -> None:
    box.write()
    detach = ["-d"] if verb == "run" else []
    box.runtime(verb, *detach, "--bundle", str(box.bundle), "--pidfd-socket", listener.path, box.id)
    kind, pidfd = listener.receive()
    assert kind == b"standard"
    assert pid_of(pidfd) == box.state()["pid"]
    box.runtime("delete", "--force", box.id)
    wait.exited(pidfd)
    os.close(pidfd)


@pidfd_socket
def test_the_pidfd_socket_of_an_exec(box: Box, listener: Listener, place: Path) -> None:
    box.start()
    pid_file = str(place / "pid")
    answer = box.exec("-d", "--pidfd-socket", listener.path, "--pid-file", pid_file, "--", "sleep", "1000")
    assert answer.code == 0
    kind, pidfd = listener.receive()
    assert kind == b"setns"
    assert pid_of(pidfd) == int(Path(pid_file).read_text())
    os.close(pidfd)


def pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def test_the_pid_file_has_the_pid_and_nothing_else(box: Box, place: Path) -> None:
    path = place / "pid"
    before = os.umask(0o027)
    try:
        box.create("--pid-file", str(path))
    finally:
        os.umask(before)
    assert path.read_text() == str(box.state()["pid"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_relative_pid_file_is_the_callers_not_the_bundles(box: Box, place: Path) -> None:
    box.write()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    box.runtime("create", "--bundle", str(box.bundle), "--pid-file", "pid", box.id, cwd=elsewhere)
    assert (elsewhere / "pid").read_text() == str(box.state()["pid"])


def test_a_pid_file_replaces_an_old_one(box: Box, place: Path) -> None:
    path = place / "pid"
    path.write_text("a long text of former times")
    box.create("--pid-file", str(path))
    assert path.read_text() == str(box.state()["pid"])


@pytest.mark.parametrize("options", [("create",), ("run", "-d"), ("run",)])
def test_a_pid_file_that_cannot_be_written(box: Box, place: Path, options: tuple[str, ...]) -> None:
    box.write()
    path = place / "none" / "pid"
    errors = box.runtime.fails(*options, "--bundle", str(box.bundle), "--pid-file", str(path), box.id)
    assert "no such file or directory" in errors.lower()
    assert os.listdir(box.runtime.root) == []


def call_with(box: Box, fds: dict[int, int], *args: str, env: dict[str, str] | None = None) -> str:
    """Run it in the foreground with descriptors of given numbers (keys) and, for LISTEN_PID, its own pid."""
    box.write()
    redirections = " ".join(f"{number}<&{fd}" for number, fd in fds.items())
    command = " ".join([*box.runtime.command, "run", "--bundle", str(box.bundle), *args, box.id])
    exports = " ".join(f"{name}={value}" for name, value in (env or {}).items())
    done = subprocess.run(
        ["bash", "-c", f"export {exports or 'A=1'}; exec {command} {redirections}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        pass_fds=tuple(fds.values()),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(place: Path) -> Iterator[list[int]]:
    opened = []
    for number in range(3):
        (place / f"file{number}").write_text(f"content {number}\n")
        opened.append(os.open(place / f"file{number}", os.O_RDONLY))
    yield opened
    for fd in opened:
        os.close(fd)


LIST = "for fd in 3 4 5 6; do [ -e /proc/self/fd/$fd ] && echo $fd: $(cat <&$fd); done; true"


def test_descriptors_are_not_inherited(box: Box, files: list[int]) -> None:
    box.shell("ls /proc/self/fd | wc -l")
    assert call_with(box, {10: files[0], 11: files[1]}) == "4\n"  # with that of ls itself


def test_preserved_descriptors(box: Box, files: list[int]) -> None:
    box.shell(LIST)
    assert call_with(box, {3: files[0], 4: files[1]}, "--preserve-fds", "2") == "3: content 0\n4: content 1\n"


@OURS_ONLY  # runc 1.1 may take one of its own
def test_preserved_descriptors_that_are_not_there(box: Box) -> None:
    box.write()
    errors = box.runtime.fails("run", "--bundle", str(box.bundle), "--preserve-fds=3", box.id)
    assert "unable to stat preserved-fd" in errors or "no such file" in errors
    assert os.listdir(box.runtime.root) == []


@OURS_ONLY
def test_a_negative_number_of_descriptors(box: Box) -> None:
    box.write()
    assert "negative" in box.runtime.fails("run", "--bundle", str(box.bundle), "--preserve-fds", "-1", box.id)


def test_descriptors_of_systemd(box: Box, files: list[int]) -> None:
    box.shell(f"echo $LISTEN_FDS $LISTEN_PID; {LIST}")
    env = {"LISTEN_FDS": "2", "LISTEN_PID": "$$"}
    output = call_with(box, {3: files[0], 4: files[1], 5: files[2]}, "--preserve-fds", "1", env=env)
    assert output == "2 1\n3: content 0\n4: content 1\n5: content 2\n"


def test_descriptors_of_systemd_for_another_process(box: Box, files: list[int]) -> None:
    box.shell(f"echo [$LISTEN_FDS] [$LISTEN_PID]; {LIST}")
    assert call_with(box, {3: files[0]}, env={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == "[] []\n"


def test_preserved_descriptors_of_an_exec(box: Box, files: list[int]) -> None:
    box.start()
    command = " ".join([*box.runtime.command, "exec", "--preserve-fds", "1", box.id, "cat", "/proc/self/fd/3"])
    done = subprocess.run(
        ["bash", "-c", f"exec {command} 3<&{files[1]}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=(files[1],),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"content 1\n"), done.stderr
