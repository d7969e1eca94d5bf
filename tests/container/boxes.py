"""A runtime that is driven by its command line, and a container that it makes."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.specs import runc_default

RUNTIME = os.environ.get("RUNTIME", "shimrun")
IS_OURS = os.path.basename(RUNTIME).startswith("shimrun")
OURS_ONLY = pytest.mark.skipif(not IS_OURS, reason="$RUNTIME is not ours")


def _program() -> str:
    """Ours is the one beside this interpreter, not one that PATH may lead to."""
    return str(Path(sys.executable).parent / RUNTIME) if RUNTIME == "shimrun" else RUNTIME


@functools.cache
def has_option(verb: str, option: str) -> bool:
    """Whether $RUNTIME is new enough to have it."""
    done = subprocess.run([_program(), verb, "--help"], capture_output=True, text=True, check=False)
    return option in done.stdout


# Of a test of what only the versions after Debian's runc 1.1 do.
NEWER = pytest.mark.skipif(not has_option("create", "--pidfd-socket"), reason="$RUNTIME is too old for it")


class Answer:
    """What a call printed and how it ended."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.output = output
        self.errors = errors

    def __repr__(self) -> str:
        return f"exit code {self.code}, output {self.output!r}, errors {self.errors!r}"


class Runtime:
    """``$RUNTIME`` with a root of its own."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.command = [_program(), "--root", str(root), *options]

    def run(self, *args: str, stdin: bytes = b"", cwd: Path | None = None, command: list[str] | None = None) -> Answer:
        """Files, not pipes: a container keeps them open."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            done = subprocess.run(
                [*(command or self.command), *args],
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=cwd,
                timeout=60,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            return Answer(done.returncode, out.read().decode(errors="replace"), err.read().decode(errors="replace"))

    def __call__(self, *args: str, stdin: bytes = b"", cwd: Path | None = None) -> str:
        """A call that has to succeed, quietly; its output."""
        answer = self.run(*args, stdin=stdin, cwd=cwd)
        assert (answer.code, answer.errors) == (0, ""), f"{args}: {answer}"
        return answer.output

    def fails(self, *args: str, stdin: bytes = b"", code: int = 1) -> str:
        """A call that has to fail; what it said."""
        answer = self.run(*args, stdin=stdin)
        assert answer.code == code, f"{args}: {answer}"
        return answer.errors


class Box:
    """A bundle with busybox, and the container that is made of it."""

    def __init__(self, runtime: Runtime, container_id: str, bundle: Path) -> None:
        self.runtime = runtime
        self.id = container_id
        self.bundle = bundle
        self.spec = runc_default("sleep", "1000", rootfs="rootfs")
        self.spec["root"]["readonly"] = False
        self.spec["linux"]["cgroupsPath"] = f"/{container_id}"

    def shell(self, script: str) -> None:
        self.spec["process"]["args"] = ["sh", "-c", script]

    def run(self, *options: str, stdin: bytes = b"") -> Answer:
        """In the foreground."""
        self.write()
        return self.runtime.run("run", "--bundle", str(self.bundle), *options, self.id, stdin=stdin)

    def output(self, script: str, *options: str, stdin: bytes = b"") -> str:
        """Of a script that has to succeed, quietly."""
        self.shell(script)
        answer = self.run(*options, stdin=stdin)
        assert (answer.code, answer.errors) == (0, ""), answer
        return answer.output

    def exec(self, *args: str, stdin: bytes = b"") -> Answer:
        """Options, the command after the id."""
        index = args.index("--") if "--" in args else 0
        return self.runtime.run("exec", *args[:index], self.id, *args[index + ("--" in args) :], stdin=stdin)

    def write(self) -> None:
        make_bundle(self.bundle, self.spec)

    def create(self, *options: str) -> None:
        self.write()
        self.runtime("create", "--bundle", str(self.bundle), *options, self.id)

    def start(self, *options: str) -> None:
        self.create(*options)
        self.runtime("start", self.id)

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.runtime("state", self.id))
        return document

    def status(self) -> str:
        return str(self.state()["status"])

    def cgroup(self, controller: str) -> Path:
        """Its folder in the v1 hierarchy of the controller, or in the unified one."""
        folder = Path("/sys/fs/cgroup") / controller / self.id
        return folder if folder.exists() else Path("/sys/fs/cgroup") / self.id


@pytest.fixture
def runtime(place: Path) -> Iterator[Runtime]:
    """Containers outlive the call that made them: they become ours to reap, as an engine's would."""
    known = wait.children()
    made = Runtime(place / "state")
    made.root.mkdir(mode=0o711)
    _set_subreaper(on=True)
    yield made
    for name in os.listdir(made.root):
        _delete(made, name, known)
    wait.reap_children_but(known)
    _set_subreaper(on=False)


def _delete(runtime: Runtime, name: str, known: set[int]) -> None:
    """The first process of a pid namespace is not gone before all others are reaped, and those of an exec are ours."""
    command = [*runtime.command, "delete", "--force", name]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                return
            for pid in wait.children() - known - {process.pid}:
                os.waitpid(pid, os.WNOHANG)


def _set_subreaper(*, on: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(36, ctypes.c_ulong(on), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


@pytest.fixture
def box(runtime: Runtime, busybox: Path, new_id: Callable[[], str]) -> Box:
    return Box(runtime, new_id(), busybox.parent)
