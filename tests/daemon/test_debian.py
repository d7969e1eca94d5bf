"""Real programs of Debian in containers with the default configs of containerd, Docker and runc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import shell
from tests.daemon.test_like_runc import docker_default
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.specs import containerd_default, runc_default

Spec = dict[str, Any]
Ask = Callable[..., tuple[str, int]]

pytestmark = requires("overlay", "program:debootstrap")


@pytest.fixture(params=[containerd_default, docker_default, runc_default])
def make_spec(request: pytest.FixtureRequest) -> Callable[..., Spec]:
    make: Callable[..., Spec] = request.param
    return make


@pytest.fixture
def ask(
    client: Client,
    bundle: MakeBundle,
    debian: Path,
    place: Path,
    container_id: str,
    make_spec: Callable[..., Spec],
) -> Ask:
    """(output, exit code) of a script in a writable Debian: the cached one below an overlay that the daemon mounts."""
    for name in ("upper", "work"):
        (place / name).mkdir()

    def run(script: str) -> tuple[str, int]:
        spec = make_spec(*shell(script))
        spec["root"] = {"path": "rootfs"}
        spec["linux"]["cgroupsPath"] = f"/{container_id}"
        folder = bundle(spec)
        (folder / "rootfs").mkdir()
        options = [f"lowerdir={debian}", f"upperdir={place}/upper", f"workdir={place}/work"]
        request = api.RunRequest(id=container_id, bundle=str(folder))
        request.rootfs.add(type="overlay", source="overlay", options=options)
        events = list(client.runtime.Run(request))
        output = b"".join(event.output.data for event in events).decode(errors="replace")
        return output, events[-1].exited.exit_status

    return run


def test_packages_are_there_and_python_is_not(ask: Ask) -> None:
    output, code = ask("apt-get --version | head -n 1 && dpkg -l | grep -c ^ii && ! command -v python3")
    assert code == 0, output
    version, packages = output.splitlines()
    assert version.startswith("apt ")
    assert int(packages) > 50


def test_programs_work_together(ask: Ask) -> None:
    output, code = ask("""
        set -e
        seq 1 1000 | sort -rn | head -n 1
        perl -e 'my $pid = fork; exit 3 unless $pid; waitpid $pid, 0; print $? >> 8, "\\n"'
        tar -C /etc -c passwd group | tar -t | wc -l
        mkdir /tmp/t && cp -a /etc/passwd /tmp/t && cmp /etc/passwd /tmp/t/passwd && ln -s t /tmp/l && ls /tmp/l
        mkfifo /tmp/f && { echo through >/tmp/f & cat /tmp/f; }
        bash -c 'trap "echo caught" USR1; kill -USR1 $$; sleep 0'
    """)
    assert (output.splitlines(), code) == (["1000", "3", "2", "passwd", "through", "caught"], 0)


def test_files_are_kept_in_the_upper_layer(ask: Ask, place: Path) -> None:
    output, code = ask("echo new >/etc/new && rm /etc/motd && touch /root/x && df / | tail -n 1 | cut -d' ' -f1")
    assert (output, code) == ("overlay\n", 0)
    assert (place / "upper/etc/new").read_text() == "new\n"
    assert (place / "upper/root/x").exists()
    gone = (place / "upper/etc/motd").lstat()
    assert (gone.st_mode & 0o170000, gone.st_rdev) == (0o020000, 0)  # a whiteout


def test_users_can_be_added_and_become(ask: Ask, make_spec: Callable[..., Spec]) -> None:
    script = "useradd -m -u 4242 worker && grep worker /etc/passwd && su worker -c 'id -un; echo ~; cat /etc/shadow'"
    output, code = ask(script)
    lines = output.splitlines()
    if make_spec is runc_default:  # without CAP_SETUID, CAP_CHOWN
        assert code != 0
    else:
        assert "worker" in lines
        assert "/home/worker" in lines
        assert "Permission denied" in output
        assert code == 1


def test_packages_can_be_removed_and_made(ask: Ask, make_spec: Callable[..., Spec]) -> None:
    """dpkg asks much of a file system: links, renames, fsync, ownership."""
    script = """
        set -e
        mkdir -p /tmp/p/DEBIAN /tmp/p/opt && echo text >/tmp/p/opt/file
        printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: m\\nDescription: d\\n' >/tmp/p/DEBIAN/control
        dpkg-deb --build /tmp/p /tmp/p.deb && dpkg -i /tmp/p.deb && cat /opt/file && dpkg -r p && test ! -e /opt/file
    """
    output, code = ask(script)
    if make_spec is not runc_default:  # without CAP_CHOWN
        assert code == 0, output
    assert "building package" in output


def test_what_the_kernel_says_of_init(ask: Ask, make_spec: Callable[..., Spec]) -> None:
    names = {
        containerd_default: ("00000000a80425fb", "1", "0"),
        docker_default: ("00000000a80425fb", "0", "2"),
        runc_default: ("0000000020000420", "1", "0"),
    }
    output, code = ask(
        "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2; echo $$; ls /sys/class/net"
    )
    assert code == 0
    assert output.splitlines() == [*names[make_spec], "1", "lo"]


def test_devices(ask: Ask) -> None:
    output, code = ask(
        "ls -l /dev; readlink /dev/fd /dev/stdin /dev/core; echo x >/dev/null; head -c 9 /dev/urandom | wc -c"
    )
    assert code == 0, output
    names = {
        line.split()[-1] if "->" not in line else line.split()[-3] for line in output.splitlines() if len(line) > 30
    }
    assert {"full", "null", "random", "tty", "urandom", "zero", "ptmx", "pts", "shm", "mqueue"} <= names
    assert output.splitlines()[-1] == "9"
