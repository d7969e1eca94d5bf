"""What is said to systemd and what becomes of its answers, beside one that only answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.cgroups import systemd_bus
from shimd.cgroups.systemd_bus import Systemd
from shimd.errors import DeadlineExceeded, RuntimeFailure, Unavailable
from tests.support.fake_systemd import FakeSystemd

EXISTS = "org.freedesktop.systemd1.UnitExists"
GONE = "org.freedesktop.systemd1.NoSuchUnit"
GREETING = ["Hello", "AddMatch"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemd]:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with FakeSystemd(tmp_path / "bus") as fake:
        yield fake


def start(name: str = "a.scope") -> None:
    with Systemd(user=False) as systemd:
        systemd.start_transient_unit(name, [("PIDs", ("au", [7])), ("DeviceAllow", ("a(ss)", [("char-*", "m")]))])


def stop() -> None:
    with Systemd(user=False) as systemd:
        systemd.stop_unit("a.scope")


@pytest.mark.parametrize("signal_first", [False, True])
def test_start(fake: FakeSystemd, *, signal_first: bool) -> None:
    fake.signal_first = signal_first
    start()
    assert fake.methods() == [*GREETING, "StartTransientUnit"]
    name, mode, properties, auxiliary = fake.calls[-1][1]
    assert (name, mode, auxiliary) == ("a.scope", "replace", [])
    assert properties == [("PIDs", ("au", [7])), ("DeviceAllow", ("a(ss)", [("char-*", "m")]))]
    assert "member='JobRemoved'" in fake.calls[1][1][0]


def test_a_unit_in_the_way_is_reset_once(fake: FakeSystemd) -> None:
    fake.errors["StartTransientUnit"] = [EXISTS]
    start()
    assert fake.methods() == [*GREETING, "StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]
    fake.errors["StartTransientUnit"] = [EXISTS, EXISTS]
    with pytest.raises(RuntimeFailure, match=r"^unable to start unit a\.scope: it is so$"):
        start()


def test_a_refusal_is_told(fake: FakeSystemd) -> None:
    fake.errors["StartTransientUnit"] = ["org.freedesktop.DBus.Error.PropertyReadOnly"]
    with pytest.raises(RuntimeFailure, match="it is so"):
        start()
    assert "ResetFailedUnit" not in fake.methods()


@pytest.mark.parametrize("result", ["failed", "timeout", "dependency", "canceled"])
def test_a_job_that_fails(fake: FakeSystemd, result: str) -> None:
    fake.jobs = [result]
    with pytest.raises(RuntimeFailure, match=f"error creating systemd unit `a.scope`: got `{result}`"):
        start()
    assert fake.methods()[-1] == "ResetFailedUnit"


def test_a_job_without_end(fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd_bus, "_JOB_TIMEOUT", 0.05)
    fake.jobs = ["", ""]
    with pytest.raises(DeadlineExceeded, match=r"timeout waiting for systemd to create a\.scope"):
        start()
    assert fake.methods()[-1] == "ResetFailedUnit"
    with pytest.raises(DeadlineExceeded, match=r"timed out while waiting for systemd to remove a\.scope"):
        stop()


def test_stop(fake: FakeSystemd) -> None:
    stop()
    fake.errors["StopUnit"] = [GONE]
    stop()
    assert fake.methods() == [*GREETING, "StopUnit", "ResetFailedUnit"] * 2
    fake.jobs = ["failed"]
    stop()
    fake.errors["StopUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    with pytest.raises(RuntimeFailure, match="unable to stop unit"):
        stop()


def test_set_and_attach(fake: FakeSystemd) -> None:
    with Systemd(user=False) as systemd:
        systemd.set_unit_properties("a.scope", [("TasksMax", ("t", 5))])
        systemd.attach_processes_to_unit("a.scope", "/sub", [7])
    assert fake.calls[2:] == [
        ("SetUnitProperties", ("a.scope", True, [("TasksMax", ("t", 5))])),
        ("Ping", ()),
        ("AttachProcessesToUnit", ("a.scope", "/sub", [7])),
    ]


@pytest.mark.parametrize(
    ("text", "number"), [("252.39-1~deb12u2", 252), ("v245.4-1.fc32", 245), ("239 (239-82.el8)", 239), ("258", 258)]
)
def test_version(fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch, text: str, number: int) -> None:
    monkeypatch.setitem(fake.answers, "Get", (("s", text),))
    with Systemd(user=False) as systemd:
        assert systemd.version() == number


def test_a_version_that_is_none(fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fake.answers, "Get", (("s", "next"),))
    with Systemd(user=False) as systemd, pytest.raises(RuntimeFailure, match="unknown version: 'next'"):
        systemd.version()


# ---- connecting ------------------------------------------------------------------------------------------------------


def test_a_peer_that_hangs_up(fake: FakeSystemd) -> None:
    fake.hang_up_on = "StartTransientUnit"
    with pytest.raises(Unavailable, match="call StartTransientUnit: "):
        start()


@pytest.mark.parametrize("greeting", [b"REJECTED EXTERNAL\r\n", b"DATA\r\nREJECTED\r\n", b"ERROR\r\nERROR\r\n"])
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    address = f"unix:path={tmp_path}/bus"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with (
        FakeSystemd(tmp_path / "bus", greeting=greeting),
        pytest.raises(Unavailable, match="connect to D-Bus: authentication is refused"),
    ):
        Systemd(user=True)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "tcp:host=localhost;nonsense")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="connect to D-Bus: No such file or directory") as caught:
        Systemd(user=True)
    assert "dbus-user-session" in caught.value.hint
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    with pytest.raises(Unavailable, match="no bus is known"):
        Systemd(user=True)


@pytest.mark.parametrize("greeting", [b"DATA\r\nOK 1234\r\n", b"OK 1234\r\nOK 1234\r\n"])
def test_the_private_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    """No bus, so there is nobody to greet. Older ones answer otherwise."""
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "systemd").mkdir()
    with FakeSystemd(tmp_path / "systemd" / "private", greeting=greeting) as fake, Systemd(user=True) as systemd:
        systemd.start_transient_unit("a.scope", [])
    assert fake.methods() == ["StartTransientUnit"]


def test_only_who_talks_to_systemd_loads_what_that_takes() -> None:
    """A look at a container that is a unit is none of these."""
    code = f"import sys; sys.path += {sys.path}; import shimd.cgroups.systemd; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"jeepney", "re", "typing", "enum", "socket"} & set(done.stdout.split())
