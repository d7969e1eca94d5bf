"""shimctl without a daemon: options to config.json, units, key sequences, and what it says when nobody listens."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from google.protobuf.any_pb2 import Any as ProtoAny

from clients.shimctl.bundle import Size, exec_process
from clients.shimctl.lifecycle import Signal
from clients.shimctl.main import VERBS, main
from clients.shimctl.output import size
from clients.shimctl.stats import Meter, usage_of
from clients.shimctl.terminal import DetachKeys
from shimd.api.containerd import cgroups_v1_pb2, cgroups_v2_pb2
from shimd.api.v1 import runtime_pb2 as pb


def shimctl(*args: str, address: str = "/nonexistent/shimd.sock") -> Result:
    return CliRunner().invoke(main, ["--address", address, *args])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = shimctl(verb, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("text", "number"),
    [("512", 512), ("512b", 512), ("1k", 1024), ("1.5m", 3 << 19), ("2G", 2 << 30), ("2GiB", 2 << 30), ("-1", -1)],
)
def test_sizes(text: str, number: int) -> None:
    assert Size().convert(text, None, None) == number


@pytest.mark.parametrize("text", ["", "m", "12x", "one", "1e999999m", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9),
        ("KILL", 9),
        ("sigterm", 15),
        ("SIGUSR1", 10),
        ("RTMIN", 34),
        ("rtmin+3", 37),
        ("RTMAX", 64),
        ("RTMAX-2", 62),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert Signal().convert(text, None, None) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGFOO", "RTMIN+", "RTMIN+99", "RTMAX-99", "RTMAX-+1"])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Signal().convert(text, None, None)


@pytest.mark.parametrize(("number", "text"), [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (5 << 40, "5.0TiB")])
def test_sizes_for_people(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("typed", "passed", "detach"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11cd"], b"ab", True),
        ([b"ab\x10", b"\x11"], b"ab", True),
        ([b"\x10x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
    ],
)
def test_detach_keys(typed: list[bytes], passed: bytes, detach: bool) -> None:  # noqa: FBT001  # a parameter of pytest's
    keys = DetachKeys()
    out = b""
    ended = False
    for data in typed:
        part, ended = keys.feed(data)
        out += part
    assert (out, ended) == (passed, detach)


def test_exec_takes_the_containers_process() -> None:
    spec = {
        "process": {
            "args": ["init"],
            "env": ["A=1"],
            "cwd": "/srv",
            "terminal": True,
            "consoleSize": {"width": 1, "height": 1},
        }
    }
    options = {"tty": False, "env": ("B=2",), "cwd": None, "user": "1000:5"}
    assert exec_process(spec, options, ["ls", "-l"]) == {
        "args": ["ls", "-l"],
        "env": ["A=1", "B=2"],
        "cwd": "/srv",
        "terminal": False,
        "user": {"uid": 1000, "gid": 5},
    }


def test_usage_of_both_cgroup_versions() -> None:
    v1 = cgroups_v1_pb2.Metrics()
    v1.cpu.usage.total = 5_000_000
    v1.memory.usage.usage = 3000
    v1.memory.total_inactive_file = 1000
    v1.pids.current = 2
    v2 = cgroups_v2_pb2.Metrics()
    v2.cpu.usage_usec = 5000
    v2.memory.usage = 3000
    v2.memory.inactive_file = 1000
    v2.pids.current = 2
    found = []
    for metrics in (v1, v2):
        packed = ProtoAny(
            type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString()
        )  # as containerd does
        found.append(usage_of(packed))
    assert found[0] == found[1]
    assert (found[0].cpu, found[0].memory, found[0].pids) == (5_000_000, 2000, 2)


def test_cpu_share_needs_two_readings() -> None:
    meter = Meter()
    answers = []
    for seconds, usec in ((1, 0), (2, 250_000)):
        entry = pb.ContainerStats(namespace="n", id="c")
        entry.timestamp.seconds = seconds
        entry.metrics.Pack(cgroups_v2_pb2.Metrics(cpu=cgroups_v2_pb2.CPUStat(usage_usec=usec)))
        answers.append(meter.rows(pb.StatsResponse(stats=[entry]))[0][1])
    assert answers == ["-", "25.0"]


def test_no_daemon_says_how_to_start_it() -> None:
    result = shimctl("list")
    assert result.exit_code == 125
    lines = result.stderr.splitlines()
    assert lines[0] == "shimctl: no daemon at /nonexistent/shimd.sock"
    assert "systemctl start shimd" in lines[1]
    assert len(lines) == 2


def test_a_file_in_place_of_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "shimd.sock"
    path.touch()
    assert "is not a socket" in shimctl("list", address=str(path)).stderr


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "shimd.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
        result = shimctl("list", address=str(path))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"shimctl: the daemon at {path} does not answer\n")


def test_spec_is_not_overwritten(tmp_path: Path) -> None:
    assert shimctl("spec", "-b", str(tmp_path)).exit_code == 0
    assert json.loads((tmp_path / "config.json").read_text())["process"]["args"] == ["sh"]
    again = shimctl("spec", "-b", str(tmp_path))
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_run_without_a_bundle(tmp_path: Path) -> None:
    result = shimctl("run", "-b", str(tmp_path))
    assert result.exit_code == 1
    assert "no config.json" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = shimctl("completion", shell)
    assert result.exit_code == 0
    assert "_SHIMCTL_COMPLETE" in result.output


def test_signal_names_are_the_systems() -> None:
    assert Signal().convert("RTMIN", None, None) == signal.SIGRTMIN
