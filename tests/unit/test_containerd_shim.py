"""The launcher's parts that need no daemon: command line, messages, settings, and how little it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clients.containerd_shim import asker, flags, places, start, wire
from clients.containerd_shim.delete import delete_response
from clients.containerd_shim.errors import Malformed, UsageError
from shimd.api.containerd import task_v2_pb2
from shimd.api.v1 import containerd_pb2
from tests.repo.tree import ROOT


def test_flags_as_containerd_gives_them() -> None:
    given = flags.parse(["-namespace", "ns", "-address=/a", "--id", "x", "-debug", "delete", "-bundle", "ignored"])
    assert (given.action, given.values) == ("delete", {"namespace": "ns", "address": "/a", "id": "x"})
    assert given.switches == {"debug"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-no-such"], "not defined: -no-such"),
        (["-id"], "needs an argument: -id"),
        (["-debug=perhaps"], "invalid boolean value 'perhaps'"),
    ],
)
def test_wrong_flags(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        flags.parse(arguments)


def test_missing_namespace() -> None:
    with pytest.raises(UsageError, match="-namespace is missing"):
        flags.parse(["-namespace", "", "start"]).required("namespace")


def test_messages_are_those_of_the_protobuf_library() -> None:
    response = task_v2_pb2.DeleteResponse.FromString(delete_response(42, 137, 1_700_000_000_000_000_005))
    assert (response.pid, response.exit_status) == (42, 137)
    assert response.exited_at.ToNanoseconds() == 1_700_000_000_000_000_005
    fields = wire.read(containerd_pb2.RegisterRequest(ttrpc_address="é" * 200, publish_binary="b").SerializeToString())
    assert (wire.last_text(fields, 1), wire.last_text(fields, 2), wire.last_text(fields, 3)) == ("é" * 200, "", "b")


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**63, -1])
def test_numbers(value: int) -> None:
    assert wire.last_number(wire.read(wire.number(7, value)), 7) == value & (1 << 64) - 1


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\x80", b"\x03", b"\x02\x00", b"\xff" * 12, b"\x09\x00"])
def test_nonsense_is_no_message(data: bytes) -> None:
    with pytest.raises(Malformed):
        wire.read(data)


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    monkeypatch.setenv("SHIMD_CONFIG", str(config))
    with pytest.raises(FileNotFoundError):
        places.find()
    config.write_text('# where\nsocket = "/a/b.sock"\n\nstate="/s"\n[log]\nstate = "not this"\n')
    found = places.find()
    assert (found.config, found.state, found.ttrpc_socket) == (str(config), "/s", "/a/b.ttrpc.sock")
    config.write_text("state = '/other'  # a string of another kind\nttrpc_socket = \"/t\"\n")
    found = places.find()
    assert (found.state, found.ttrpc_socket) == ("/other", "/t")


def test_bootstrap_parameters_are_told_from_options() -> None:
    parameters = wire.text(1, "c1") + wire.text(2, "ns") + wire.text(4, "2.3.0")
    options = wire.text(1, "containerd.runc.v1.Options") + wire.text(2, b"\x08\x01")
    assert start.bootstrap(parameters, "ns", "c1") is not None
    for other in (options, b"", b"\xff", parameters.replace(b"c1", b"c2")):
        assert start.bootstrap(other, "ns", "c1") is None


def test_forms_of_the_answer() -> None:
    assert start.answer("address", "unix:///t", "/g") == b"unix:///t"
    assert start.answer("3", "unix:///t", "/g") == b'{"version":3,"address":"unix:///t","protocol":"ttrpc"}'
    assert start.answer("grpc", "unix:///t", "/g") == b'{"version":2,"address":"/g","protocol":"grpc"}'
    with pytest.raises(UsageError, match="SHIMD_ANSWER"):
        start.answer("4", "unix:///t", "/g")


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ("containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", 2),
        ("containerd github.com/containerd/containerd v1.7.24 88bf19b2\n", 1),
        ("containerd github.com/containerd/containerd/v2 main x\n", 0),
        ("k3s version v1.30.1+k3s1 (80978b5b)\n", 0),
        ("", 0),
    ],
)
def test_version_of_containerd(text: str, major: int) -> None:
    assert asker.parse(text) == major


def test_who_asks_is_no_containerd(tmp_path: Path) -> None:
    assert asker.major_version(places.Places("", str(tmp_path), "")) == 0
    assert asker.major_version(places.Places("", str(tmp_path), ""), parent=1 << 30) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["start", "delete", "asker"])
def test_nothing_slow_is_imported(action: str) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import clients.containerd_shim.main, clients.containerd_shim.{action}
print(*sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"typing", "re", "enum", "collections", "socket", "json", "ctypes", "google", "grpc", "shimd"}


def test_errors_are_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clients.containerd_shim", "-namespace", "x", "stop"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "unknown action 'stop'" in done.stderr
