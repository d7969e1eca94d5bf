"""What a container gets from whoever starts it beside what config.json says: nothing. The starting process is made as
dirty as it can be (environment, descriptors, signals, limits, directory, keyring), and both launchers are looked at.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.errors import RuntimeFailure
from shimd.runtime.model import Container
from tests.kernel.attack import shell, sleeper, small_rootfs
from tests.kernel.runtime_rig import Rig, rig_with

SECRET = "token-of-the-host"


@pytest.fixture
def dirty(place: Path) -> Iterator[int]:
    """A process that nobody should start containers from; the result is a descriptor of the host's file system."""
    small_rootfs(place / "rootfs")
    old = resource.getrlimit(resource.RLIMIT_NOFILE), os.umask(0o077), os.getcwd()
    os.environ["SHIMD_TEST_SECRET"] = SECRET
    fd = fcntl.fcntl(os.open("/", os.O_RDONLY | os.O_DIRECTORY), fcntl.F_DUPFD, 7)
    ignored = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGPIPE)]
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2, signal.SIGRTMIN + 3))
    os.chdir(place)
    yield fd
    os.chdir(old[2])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number, action in zip((signal.SIGUSR1, signal.SIGTERM, signal.SIGPIPE), ignored, strict=True):
        signal.signal(number, action)
    os.umask(old[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, old[0])
    del os.environ["SHIMD_TEST_SECRET"]
    for open_fd in {fd, *[int(name) for name in os.listdir("/proc/self/fd")]}:
        if (
            open_fd > 2
            and os.path.exists(f"/proc/self/fd/{open_fd}")
            and os.readlink(f"/proc/self/fd/{open_fd}") == "/"
        ):
            os.close(open_fd)


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, dirty: int, container_id: str) -> Iterator[Rig]:
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def running(rig: Rig) -> Iterator[Container]:
    container = rig.create(sleeper(), gate=False)
    yield container
    rig.end(container)


LOOK = """
p=$1
echo fds: $(ls /proc/$p/fd)
echo cwd: $(readlink /proc/$p/cwd) root: $(readlink /proc/$p/root)
grep -E '^(SigIgn|SigBlk|SigPnd|ShdPnd|SigCgt|CapInh|CapAmb|NoNewPrivs|Umask|Groups|Uid)' /proc/$p/status
echo personality: $(cat /proc/$p/personality)
sed -n 's/^Max open files *//p; s/^Max core file size *//p' /proc/$p/limits
set -- $(sed 's/.*) //' /proc/$p/stat)
echo session: $4 tty: $5 nice: ${17}
tr '\\0' '\\n' < /proc/$p/environ
"""
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def seen(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def expected(pid: int) -> list[str]:
    return [
        "fds: 0 1 2",
        "cwd: / root: /",
        "Umask: 0022",
        "Uid: 0 0 0 0",
        "Groups:",
        *(f"{name}: {0:016x}" for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapAmb")),
        "NoNewPrivs: 1",
        "personality: 00000000",
        f"session: {pid} tty: 0 nice: 0",
    ]


def test_nothing_of_the_starter_reaches_the_program(rig: Rig, running: Container) -> None:
    core = resource.getrlimit(resource.RLIMIT_CORE)
    soft, hard = ("unlimited" if value < 0 else str(value) for value in core)
    code, text = rig.output_of(running, "/bin/sh", "-c", LOOK, "sh", "1")
    lines = seen(text)
    assert code == 0
    assert lines[:13] == expected(1)[:13]
    assert lines[13:] == [
        expected(1)[13], f"{soft} {hard} bytes", "1024 1024 files", expected(1)[14], PATH, "TERM=xterm", "HOME=/root",
    ]  # fmt: skip


def test_nothing_of_the_starter_reaches_an_exec(rig: Rig, running: Container) -> None:
    process = rig.exec(running, "/bin/sleep", "1000", name="y", env=["A=b"], user={"uid": 1000, "gid": 1000})
    proc = Path(f"/proc/{process.pid}")
    lines = seen((proc / "status").read_text())
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{name}: {0:016x}" in lines
    assert {"Umask: 0022", "Groups:", "Uid: 1000 1000 1000 1000"} <= set(lines)
    assert sorted(os.listdir(proc / "fd")) == ["0", "1", "2"]
    assert (proc / "environ").read_bytes() == b"A=b\0HOME=/home/user\0"
    assert "Max open files 1024 1024 files" in seen((proc / "limits").read_text())
    assert proc.stat().st_uid == 1000, "still not dumpable"
    rig.runtime.kill_exec(running, process, signal.SIGKILL)
    rig.wait_exec(running, process)


def test_cve_2024_21626_no_directory_of_the_host_is_open(rig: Rig, dirty: int) -> None:
    """Every number that a descriptor could have, as working directory and as the place of the program."""
    for fd in (3, 4, 5, 6, dirty, 8, 9, 10, 11, 12):
        for path in (
            f"/proc/self/fd/{fd}",
            f"/proc/self/fd/{fd}/../..",
            f"/proc/1/fd/{fd}",
            f"/proc/thread-self/fd/{fd}",
        ):
            with pytest.raises(RuntimeFailure, match=r"\(/process/cwd\)") as refused:
                rig.create(shell("true", cwd=path))
            assert path.rstrip("/.") in str(refused.value)


def test_cve_2024_21626_nor_when_the_link_is_the_images(rig: Rig) -> None:
    for fd in range(3, 14):
        path = rig.place / "rootfs/work"
        path.unlink(missing_ok=True)
        path.symlink_to(f"/proc/self/fd/{fd}")
        with pytest.raises(RuntimeFailure, match=r"\(/process/cwd\)"):
            rig.create(shell("true", cwd="/work"))


def exec_in(rig: Rig, container: Container, *args: str, cwd: str = "/") -> tuple[int, str]:
    """As ``Rig.output_of``, and the name can be used again."""
    try:
        return rig.output_of(container, *args, cwd=cwd)
    finally:
        rig.launcher.forget(f"{rig.id}/x")


def test_cve_2024_21626_at_exec(rig: Rig, running: Container) -> None:
    for fd in range(3, 16):
        for path in (f"/proc/self/fd/{fd}", f"/proc/self/fd/{fd}/../.."):
            try:
                code, text = exec_in(rig, running, "/bin/sh", "-c", "pwd -P; ls -d /bin/busybox", cwd=path)
            except RuntimeFailure as refused:
                assert "(/cwd)" in str(refused), refused  # noqa: PT017  (either is harmless)
            else:
                assert (code, text) == (0, "/\n/bin/busybox\n"), "not the container's own root"


def test_cve_2024_21626_as_the_program(rig: Rig, running: Container) -> None:
    """The host has a /usr/bin/env, the container has none."""
    for fd in range(3, 16):
        for path in (f"/proc/self/fd/{fd}/usr/bin/env", f"/proc/self/fd/{fd}/../../usr/bin/env", f"/proc/self/fd/{fd}"):
            refusal = "(no such file|a directory|permission denied)"
            with pytest.raises(RuntimeFailure, match=rf'\(/args\): exec: "{path}": .*{refusal}'):
                exec_in(rig, running, path)
