from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from shimd import systemd
from shimd.errors import InvalidArgument
from shimd.systemd import Notifier, listen_sockets


def test_notify(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        notifier = Notifier(environ)
        notifier.send("READY=1", "STATUS=fine")
        assert listener.recv(100) == b"READY=1\nSTATUS=fine"
    assert environ == {}
    assert notifier.watchdog_interval == 1.5


def test_abstract_notify_socket() -> None:
    name = f"shimd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).send("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.send("READY=1")
    assert notifier.watchdog_interval == 0


def test_watchdog_of_another_process() -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_interval == 0


def test_listeners_of_another_process_are_not_taken() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert listen_sockets(environ) == []
    assert environ == {}


def test_listeners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(tmp_path / "s"))
    given.listen()
    fd = given.detach()
    os.set_inheritable(fd, True)  # noqa: FBT003  positional-only
    monkeypatch.setattr(systemd, "_FIRST_FD", fd)
    [(name, taken)] = listen_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ttrpc"})
    with taken:
        assert name == "ttrpc"
        assert taken.getsockname() == str(tmp_path / "s")
        assert not taken.get_inheritable()


def test_what_is_no_listener_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        monkeypatch.setattr(systemd, "_FIRST_FD", os.dup(one.fileno()))
        with pytest.raises(InvalidArgument, match="not a listening Unix socket"):
            listen_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def test_a_service_manager_that_is_gone_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"}).send("STOPPING=1")
    assert "STOPPING=1: No such file or directory" in caplog.text
