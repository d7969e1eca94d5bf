"""AppArmor: profiles that are loaded with apparmor_parser confine a container's program and its execs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container import boxes as container
from tests.container.boxes import Runtime, runtime
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.lab.talking import ask, run
from tests.support.requires import requires
from tests.support.specs import runc_default

__all__ = ["runtime"]

pytestmark = [pytest.mark.lab("apparmor"), requires("apparmor", "program:apparmor_parser")]

PROFILE = """
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  file,
  capability,
  network,
  mount,
  umount,
  signal,
  ptrace,
  unix,
  change_profile -> shimd-test-*,
  deny {denied} rwklx,
}}
"""
FIRST, SECOND = "shimd-test-first", "shimd-test-second"
ATTRIBUTE = "/proc/self/attr/apparmor/current"
SCRIPT = f"exec 2>&1; cat {ATTRIBUTE}; cat /etc/first; cat /etc/second; true"


def denied(name: str, file: str) -> str:
    """What the script says under the profile that denies ``file``."""
    lines = [f"cat: can't open '/etc/{each}': Permission denied" if each == file else each for each in FILES]
    return "\n".join([f"{name} (enforce)", *lines, ""])


FILES = ("first", "second")


@pytest.fixture(scope="module", autouse=True)
def profiles() -> Iterator[None]:
    texts = [
        PROFILE.format(name=name, denied=f"/etc/{file}") for name, file in zip((FIRST, SECOND), FILES, strict=True)
    ]
    _parser("--replace", "".join(texts))
    yield
    _parser("--remove", "".join(texts))


def _parser(action: str, text: str) -> None:
    command = ["apparmor_parser", "--skip-cache", action]
    subprocess.run(command, input=text.encode(), check=True, capture_output=True)


@pytest.fixture
def rootfs(busybox: Path) -> Path:
    for name in FILES:
        (busybox / "etc" / name).write_text(f"{name}\n")
    return busybox


def confined(*args: str, profile: str = FIRST, **process: Any) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["process"] |= {"apparmorProfile": profile, **process}
    return spec


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_profile_denies_a_file(box: MakeBox, rootfs: Path, place: Path, *, no_new_privileges: bool) -> None:
    b = box(spec=confined(*shell(SCRIPT), noNewPrivileges=no_new_privileges))
    assert run(b, place) == (denied(FIRST, "first"), 0)


def test_without_a_profile_nothing_is_denied(box: MakeBox, rootfs: Path, place: Path) -> None:
    b = box(spec=runc_default(*shell(SCRIPT)))
    assert run(b, place) == ("unconfined\nfirst\nsecond\n", 0)


@pytest.fixture
def running(box: MakeBox, rootfs: Path) -> Box:
    b = box(spec=confined("sleep", "1000"))
    b.make()
    b.start()
    return b


def test_an_exec_has_the_containers_profile(running: Box, place: Path) -> None:
    assert ask(running, place, SCRIPT) == (denied(FIRST, "first"), 0)


def test_an_exec_may_have_one_of_its_own(running: Box, place: Path) -> None:
    assert ask(running, place, SCRIPT, apparmorProfile=SECOND) == (denied(SECOND, "second"), 0)


def test_the_command_line(runtime: Runtime, rootfs: Path, container_id: str) -> None:
    """In $RUNTIME."""
    made = container.Box(runtime, container_id, rootfs.parent)
    made.spec["process"]["apparmorProfile"] = FIRST
    made.start()
    assert runtime("exec", made.id, "sh", "-c", SCRIPT) == denied(FIRST, "first")
    options = ("--apparmor", SECOND)
    assert runtime("exec", *options, made.id, "sh", "-c", SCRIPT) == denied(SECOND, "second")


@pytest.mark.parametrize("where", ["create", "exec"])
def test_a_profile_that_is_not_loaded(box: MakeBox, running: Box, place: Path, where: str) -> None:
    with refused("UNKNOWN", "set AppArmor profile shimd-test-none: no such profile is loaded"):
        if where == "create":
            box(spec=confined("true", profile="shimd-test-none")).make()
        else:
            ask(running, place, "true", apparmorProfile="shimd-test-none")
