"""Processes of a container against those that join it: an exec's init has all privileges of the host until it has
dropped them, and is visible inside by then.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.host.facts import probe
from shimd.runtime import creating, execing
from tests.kernel.attack import bind, sleeper, small_rootfs
from tests.kernel.attacker import Victim, attacker
from tests.kernel.runtime_rig import Rig, rig_with

CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    small_rootfs(place / "rootfs")
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def host_python() -> Iterator[Path]:
    """The interpreter, which is the same file, with the same content, at the end."""
    path = Path(os.path.realpath(sys.executable))
    before = path.stat(), hashlib.sha256(path.read_bytes()).digest()
    yield path
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before[0].st_ino,
        before[0].st_size,
        before[0].st_mtime_ns,
    )
    assert hashlib.sha256(path.read_bytes()).digest() == before[1]


def test_cve_2016_9962(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the joining process waits for "ready": in all namespaces, with all capabilities of the host."""
    victims: list[Victim] = []
    container = rig.create(sleeper(), gate=False)
    with attacker(container.pid, *CAPABILITIES) as inside:
        monkeypatch.setattr(execing, "set_rlimits", lambda *_: victims.extend(inside.round()))
        assert rig.output_of(container, "echo", "done") == (0, "done\n")
    rig.launcher.forget(f"{rig.id}/x")
    rig.end(container)
    assert victims, "the process was not seen at all"
    assert [victim for victim in victims if victim.breaches] == []


def test_an_init_at_the_start_gate(rig: Rig) -> None:
    """It has no more privileges, but it is the runtime's code still, and holds the gate."""
    container = rig.create(sleeper())
    with attacker(container.pid, *CAPABILITIES) as inside:
        victims = inside.round()
    rig.end(container)
    assert [(victim.pid, victim.breaches) for victim in victims] == [(1, ())]


def test_a_container_that_joins_the_pid_namespace_of_another(
    rig: Rig, container_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a pod do: its init is visible to the others before it has given anything up."""
    victims: list[Victim] = []
    first = rig.create(sleeper(), gate=False)
    other = Rig(probe(), rig.launcher, rig.place, f"{container_id}-other")
    spec = sleeper()
    spec["linux"]["namespaces"][0]["path"] = f"/proc/{first.pid}/ns/pid"
    with attacker(first.pid, *CAPABILITIES) as inside:
        monkeypatch.setattr(creating, "set_rlimits", lambda *_: victims.extend(inside.round()))
        second = other.create(spec, gate=False)
        other.end(second)
    rig.end(first)
    assert [victim.breaches for victim in victims] == [()]


def test_cve_2016_9962_in_a_loop(rig: Rig) -> None:
    """At any other time, from the clone to the execve; what can be opened is the program that was asked for."""
    script = """
    while :; do
        for p in /proc/[0-9]*; do
            case $p in /proc/1|/proc/$$) continue;; esac
            e=$(readlink $p/exe) && case $e in /bin/*) ;; *) echo "exe $p $e"; esac
            for n in cwd root fd/0 fd/3 fd/4 fd/5 fd/6 fd/7; do
                l=$(readlink $p/$n) && case $l in /|/dev/null|pipe:*|/proc/*) ;; *) echo "$n $p $l"; esac
            done
        done
    done"""
    spec = sleeper()
    spec["process"]["args"] = ["/bin/sh", "-c", script]
    with rig.output() as output:
        container = rig.create(spec, stdio=output.stdio(), gate=False)
        for _ in range(30):
            assert rig.output_of(container, "true") == (0, "")
            rig.launcher.forget(f"{rig.id}/x")
        rig.end(container)
        assert output.text() == ""


STEAL = """#!/proc/self/exe
import os
print(os.readlink("/proc/self/exe"), flush=True)
fd = os.open("/proc/self/exe", os.O_RDONLY)
os.set_inheritable(fd, True)
for path in ("/proc/self/exe", f"/proc/self/fd/{fd}"):
    for attack in (
        lambda: os.open(path, os.O_WRONLY), lambda: os.open(path, os.O_RDWR | os.O_APPEND),
        lambda: os.truncate(path, 0),
        lambda: os.chmod(path, 0o777), lambda: os.chown(path, 1, 1), lambda: os.setxattr(path, "user.a", b"b"),
        lambda: os.utime(path), lambda: os.link(path, "/tmp/link", follow_symlinks=True), lambda: os.unlink(path),
    ):
        try:
            print("worked:", attack())
        except OSError:
            pass
# The program is not running any more when the shell writes to it, so it is not ETXTBSY that keeps it.
place = f"/proc/self/fd/{fd}"
os.execv("/bin/sh", ["sh", "-c", f"echo x >> {place} && echo written; echo x 1<> {place} && echo written"])
"""


def with_python(rig: Rig, python: Path) -> dict[str, Any]:
    """The interpreter works inside, as an attacker would see to: with its libraries in the image."""
    spec = sleeper()
    for place in ("/lib", "/lib64", "/usr/lib", sys.base_prefix):
        if os.path.exists(place):
            spec["mounts"].append(bind(place, place, "ro"))
    spec["process"]["env"] += [f"PYTHONHOME={sys.base_prefix}", f"LD_LIBRARY_PATH={sys.base_prefix}/lib"]
    evil = rig.place / "rootfs/evil"
    evil.write_text(STEAL)
    evil.chmod(0o755)
    return spec


def assert_kept(code: int, text: str, python: Path) -> None:
    link, *rest = text.splitlines()
    assert python.name in link, f"the attack did not run: {text}"
    assert code != 0
    assert len(rest) == 2, text
    assert all("Read-only file system" in line or "not permitted" in line for line in rest), text


def test_cve_2019_5736_as_the_entry_point(rig: Rig, host_python: Path) -> None:
    spec = with_python(rig, host_python)
    spec["process"]["args"] = ["/evil"]
    assert_kept(*rig.run(spec), host_python)


def test_cve_2019_5736_as_an_exec(rig: Rig, host_python: Path) -> None:
    spec = with_python(rig, host_python)
    container = rig.create(spec, gate=False)
    result = rig.output_of(container, "/evil", env=spec["process"]["env"])
    rig.launcher.forget(f"{rig.id}/x")
    rig.end(container)
    assert_kept(*result, host_python)


def test_cve_2019_5736_from_beside(rig: Rig, host_python: Path) -> None:
    """Processes of the container open what any process that comes in runs, for writing, without a pause."""
    script = """
    while :; do
        for p in /proc/[0-9]* /proc/self; do
            { echo x 1<> $p/exe; } 2>/dev/null && echo "wrote to $p: $(readlink $p/exe)"
        done
    done"""
    spec = sleeper()
    spec["process"]["args"] = ["/bin/sh", "-c", script]
    spec["root"]["readonly"] = True  # or the attackers overwrite their own busybox
    with rig.output() as output:
        container = rig.create(spec, stdio=output.stdio(), gate=False)
        for _ in range(30):
            assert rig.output_of(container, "true") == (0, "")
            rig.launcher.forget(f"{rig.id}/x")
        rig.end(container)
        assert output.text() == ""
