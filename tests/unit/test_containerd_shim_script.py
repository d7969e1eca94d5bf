"""What the launcher's shell answers by itself, and what it leaves to Python."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.containerd_shim import start
from shimd.api.containerd import task_v2_pb2
from shimd.events.forward import Addresses
from shimd.events.known import Known

SCRIPT = Path(__file__).parents[2] / "clients/containerd_shim/containerd-shim-shimd-v2"
ADDRESS, BINARY, SOCKET = "/run/c/c.sock", "/usr/bin/containerd", "/run/shimd/containerds/1.sock"
FLAGS = ("-namespace", "n_1", "-address", ADDRESS, "-publish-binary", BINARY, "-id", "c-1")
PYTHON = "python was started"


class Launcher:
    """In a bundle, beside a daemon that knows one containerd."""

    def __init__(self, folder: Path) -> None:
        self.bundle, self.state, self.programs = folder / "bundle", folder / "state", folder / "programs"
        for path in (self.bundle / "rootfs", self.state / "containerds", self.programs):
            path.mkdir(parents=True)
        (self.programs / "python3").write_text(f"#!/bin/sh\nprintf '{PYTHON}'\n")
        (self.programs / "python3").chmod(0o755)
        self.config = folder / "config.toml"
        self.config.write_text(f'# words\n  state = "{self.state}"\n[log]\nstate = "x"\n')
        self.environment = {"SHIMD_CONFIG": str(self.config), "PATH": f"{self.programs}:{os.environ['PATH']}"}
        self.lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT)
        self.known = Known(str(self.state / "containerds"), self.lock)
        self.known.tell(Addresses(f"{ADDRESS}.ttrpc", ADDRESS, BINARY), "n_1", SOCKET)
        self.form = self.state / "containerds" / f"{start.known_name(ADDRESS, 'n_1')}.form"
        self.note_form("address")

    def note_form(self, form: str, *, pid: int = 0, started: int = 0) -> None:
        """As Python does, of this process."""
        own = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
        self.form.write_text(f"{pid or os.getpid()} {started or own} {form}\n")

    def __call__(self, *arguments: str, **environment: str) -> bytes:
        command, where = [str(SCRIPT), *arguments], self.environment | environment
        done = subprocess.run(command, cwd=self.bundle, env=where, stdin=subprocess.DEVNULL, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    def asks_python(self, *arguments: str, **environment: str) -> bool:
        return self(*arguments, **environment) == PYTHON.encode()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    made = Launcher(tmp_path)
    yield made
    if made.lock >= 0:
        os.close(made.lock)


@pytest.mark.parametrize("more", [(), ("-debug",)])
def test_start(launcher: Launcher, more: tuple[str, ...]) -> None:
    assert launcher(*FLAGS, *more, "start") == f"unix://{SOCKET}".encode()
    assert (launcher.bundle / "address").read_text() == f"unix://{SOCKET}"
    assert launcher(*FLAGS, "start", TTRPC_ADDRESS=f"{ADDRESS}.ttrpc") == f"unix://{SOCKET}".encode()
    launcher.note_form("3")
    assert launcher(*FLAGS, "start") == start.answer("3", f"unix://{SOCKET}", "")


def test_another_containerd_than_the_one_whose_form_is_known(launcher: Launcher) -> None:
    launcher.note_form("3", pid=1)
    assert launcher.asks_python(*FLAGS, "start")
    launcher.note_form("3", started=1)
    assert launcher.asks_python(*FLAGS, "start")
    launcher.form.unlink()
    assert launcher.asks_python(*FLAGS, "start")


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        ((*FLAGS, "start"), {"TTRPC_ADDRESS": "/run/other"}),
        ((*FLAGS, "start"), {"SHIMD_ANSWER": "3"}),
        ((*FLAGS, "start"), {"SHIMD_CONFIG": "/nowhere"}),
        ((*FLAGS, "-publish-binary", "/usr/local/bin/containerd", "start"), {}),
        ((*FLAGS, "-namespace", "other", "start"), {}),
        ((*FLAGS, "-namespace", "../n_1", "start"), {}),
        ((*FLAGS, "-id", "", "start"), {}),
        ((*FLAGS, "--id=c", "start"), {}),
        ((*FLAGS, "start", "more"), {}),
        ((*FLAGS, "stop"), {}),
        (FLAGS, {}),
        (("-v",), {}),
        (("-info",), {}),
        ((), {}),
    ],
)
def test_what_is_left_to_python(launcher: Launcher, flags: tuple[str, ...], environment: dict[str, str]) -> None:
    assert launcher.asks_python(*flags, **environment)


@pytest.mark.parametrize("line", ["state='{}'", 'state="{}"', 'state = "{}" # here', 'state = """{}"""'])
def test_settings_in_another_form(launcher: Launcher, line: str) -> None:
    launcher.config.write_text(line.format(launcher.state))
    assert launcher.asks_python(*FLAGS, "start")


def test_settings_without_a_newline_at_the_end(launcher: Launcher) -> None:
    launcher.config.write_text(f'state = "{launcher.state}"')
    assert launcher(*FLAGS, "start") == f"unix://{SOCKET}".encode()


def test_nothing_but_the_answer_is_said(launcher: Launcher) -> None:
    (launcher.bundle / "address").mkdir()
    assert launcher.asks_python(*FLAGS, "start")


def test_daemon_that_is_gone(launcher: Launcher) -> None:
    os.close(launcher.lock)
    launcher.lock = -1
    assert launcher.asks_python(*FLAGS, "start")


def test_daemon_that_ends(launcher: Launcher) -> None:
    launcher.known.withdraw()
    assert os.listdir(launcher.state / "containerds") == []
    assert launcher.asks_python(*FLAGS, "start")


@pytest.mark.parametrize(
    ("address", "namespace"), [("/run/c d.sock", "n"), ("/run/c\n.sock", "n"), ("/run/c.sock", "n" * 250)]
)
def test_nothing_is_told_that_a_shell_could_misread(launcher: Launcher, address: str, namespace: str) -> None:
    launcher.known.withdraw()
    launcher.known.tell(Addresses("/t", address, BINARY), namespace, SOCKET)
    assert os.listdir(launcher.state / "containerds") == []


def test_delete(launcher: Launcher) -> None:
    response = task_v2_pb2.DeleteResponse.FromString(launcher(*FLAGS, "-bundle", str(launcher.bundle), "delete"))
    assert (response.pid, response.exit_status) == (0, 137)
    assert abs(response.exited_at.seconds - time.time()) <= 2


def test_delete_of_what_is_there_still(launcher: Launcher) -> None:
    (launcher.bundle / "rootfs/.x").touch()
    assert launcher.asks_python(*FLAGS, "delete")
    (launcher.bundle / "rootfs/.x").unlink()
    container = launcher.state / "containers/n_1/c-1"
    container.mkdir(parents=True)
    assert launcher.asks_python(*FLAGS, "delete")
    container.rmdir()
    container.symlink_to("/nowhere")
    assert launcher.asks_python(*FLAGS, "delete")
