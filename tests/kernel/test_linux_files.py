"""Descriptors of all kinds: passed, sealed, cloned, looped, piped, terminals, programs, interfaces."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.linux import bpf, fdpass, loop, memfd, netlink, pipe, pty, selfexe
from shimd.linux.process import CLONE_NEWNET, clone3, execveat
from tests.kernel.child import run_in_child


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


def test_descriptors_travel(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    fdpass.send(left, b"two", (0, 1))
    data, fds = fdpass.recv(right, 100)
    assert (data, len(fds)) == (b"two", 2)
    assert os.path.sameopenfile(fds[1], 1)
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)
    fdpass.send(left, b"none")
    assert fdpass.recv(right, 100) == (b"none", [])
    left.close()
    assert fdpass.recv(right, 100) == (b"", [])


def test_too_many_descriptors_are_closed_and_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    fdpass.send(left, b"x", (0,) * 8)
    with pytest.raises(OSError, match="more descriptors"):
        fdpass.recv(right, 100, max_fds=2)
    fdpass.send(left, b"x", (0,) * fdpass.MAX_FDS)
    for fd in fdpass.recv(right, 1)[1]:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fdpass.send(left, b"x", (9999,))
    right.close()
    with pytest.raises(BrokenPipeError):
        fdpass.send(left, b"x")


def test_sealed_memory_cannot_change() -> None:
    fd = memfd.sealed("plan", b"x" * 200_000)
    assert memfd.is_sealed(fd)
    assert memfd.read_all(fd) == os.read(fd, 300_000) == b"x" * 200_000
    for change in (lambda: os.write(fd, b"y"), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 20)):
        with pytest.raises(PermissionError):
            change()
    os.close(fd)


def test_unsealed_memory_is_not_read() -> None:
    fd = memfd.create("open", executable=False)
    with pytest.raises(PermissionError, match="not a sealed"):
        memfd.read_all(fd)
    os.close(fd)
    with open("/etc/passwd") as file:
        assert not memfd.is_sealed(file.fileno())


def run_program(fd: int) -> int:
    pid, pidfd = clone3(0)
    if pid == 0:
        try:
            execveat(fd, ("sh", "-c", "exit 5"), ())
        finally:
            os._exit(99)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def overwrite(path: str) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"#!/bin/evil")


@pytest.mark.parametrize("name", ["read_only_clone", "sealed_copy", "protected_executable"])
def test_protected_executables_run_and_cannot_be_written(name: str) -> None:
    fd = getattr(selfexe, name)("/bin/sh")
    link = f"/proc/self/fd/{fd}"
    assert selfexe.is_protected(link)
    assert run_program(fd) == 5
    with pytest.raises(OSError, match=r"Read-only|not permitted") as caught:
        overwrite(link)
    assert caught.value.errno in (errno.EROFS, errno.EPERM)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_ordinary_executables_are_not_protected() -> None:
    assert not selfexe.is_protected()


def test_overlay_is_not_used_for_odd_directories(tmp_path: Path) -> None:
    directory = tmp_path / "with:colon"
    directory.mkdir()
    (directory / "sh").write_bytes(Path("/bin/sh").read_bytes())
    with pytest.raises(OSError, match="cannot name"):
        selfexe.read_only_clone(str(directory / "sh"))
    fd = selfexe.protected_executable(str(directory / "sh"))
    assert memfd.is_sealed(fd)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        selfexe.protected_executable(str(directory / "missing"))


@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="needs loop devices")
def test_loop_device(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"shimd" + bytes((1 << 20) - 5))
    device, fd = loop.attach(str(image), read_only=True)
    assert os.pread(fd, 5, 0) == b"shimd"
    assert Path(f"/sys/block/{Path(device).name}/ro").read_text() == "1\n"
    assert Path(f"/sys/block/{Path(device).name}/loop/autoclear").read_text() == "1\n"
    os.close(fd)
    assert str(image) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(FileNotFoundError):
        loop.attach(str(tmp_path / "missing"), read_only=True)
    with pytest.raises(OSError, match="tmp"):
        loop.attach(str(tmp_path), read_only=True)
    device, fd = loop.attach(str(image), read_only=False)
    os.pwrite(fd, b"SHIMD", 0)
    os.fsync(fd)
    loop.detach(fd)
    os.close(fd)
    assert image.read_bytes()[:5] == b"SHIMD"


def test_pipes() -> None:
    (left_read, left_write), (right_read, right_write) = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        pipe.tee(left_read, right_write, 100)
    os.write(left_write, b"hello")
    assert pipe.bytes_available(left_read) == 5
    assert pipe.tee(left_read, right_write, 100) == 5
    assert os.read(left_read, 100) == os.read(right_read, 100) == b"hello"
    assert pipe.set_pipe_size(left_read, 4096) == 4096
    assert pipe.get_pipe_size(left_write) == 4096
    os.write(left_write, b"x" * 4096)
    assert pipe.set_pipe_size(right_read, 8192) == 8192
    os.close(left_write)
    os.read(left_read, 4096)
    assert pipe.tee(left_read, right_write, 100) == 0
    for fd in (left_read, right_read, right_write):
        os.close(fd)


def test_a_pipe_that_is_too_full_to_shrink_keeps_its_size() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 32768)
    assert pipe.set_pipe_size(read_end, 4096) == 65536
    with pytest.raises(OSError, match="Bad file"):
        pipe.set_pipe_size(9999, 4096)
    os.close(read_end)
    os.close(write_end)


def test_terminals() -> None:
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    with pytest.raises(OSError, match="Input/output"):
        pty.open_peer(master)
    pty.unlockpt(master)
    slave = pty.open_peer(master)
    assert os.ttyname(slave) == f"/dev/pts/{pty.ptsname_index(master)}"
    assert not os.get_inheritable(slave)
    pty.set_winsize(master, 33, 101)
    assert pty.get_winsize(slave) == (33, 101)
    assert termios.tcgetattr(slave)[1] & termios.ONLCR
    pty.disable_onlcr(slave)
    os.write(slave, b"a\n")
    assert os.read(master, 10) == b"a\n"

    def check() -> None:
        os.setsid()
        pty.set_controlling_terminal(slave)
        assert os.tcgetpgrp(slave) == os.getpgrp()

    run_in_child(check)
    os.close(slave)
    with pytest.raises(OSError, match="Input/output"):
        os.read(master, 10)
    os.close(master)
    with open("/dev/null") as file, pytest.raises(OSError, match="ioctl"):
        pty.set_winsize(file.fileno(), 1, 1)


CGROUP2 = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{p}/cgroup.procs")), "")
RETURN_1 = bytes.fromhex("b700000001000000") + bytes.fromhex("9500000000000000")
RETURN_0 = bytes.fromhex("b700000000000000") + bytes.fromhex("9500000000000000")


@pytest.mark.skipif(not CGROUP2, reason="needs a cgroup2 mount")
def test_device_programs() -> None:
    path = Path(CGROUP2, f"shimd-test-bpf-{os.getpid()}")
    path.mkdir()
    cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    allow = bpf.prog_load(RETURN_1, name="shimd_allow")
    deny = bpf.prog_load(RETURN_0)
    try:
        assert bpf.prog_query(cgroup) == []
        bpf.prog_attach(cgroup, allow, flags=bpf.BPF_F_ALLOW_MULTI)
        (first,) = bpf.prog_query(cgroup)
        bpf.prog_attach(cgroup, deny, flags=bpf.BPF_F_ALLOW_MULTI | bpf.BPF_F_REPLACE, replace_fd=allow)
        (second,) = bpf.prog_query(cgroup)
        assert first != second
        again = bpf.prog_get_fd_by_id(second)
        bpf.prog_detach(cgroup, again)
        os.close(again)
        assert bpf.prog_query(cgroup) == []
        with pytest.raises(FileNotFoundError):
            bpf.prog_detach(cgroup, deny)
    finally:
        for fd in (allow, deny, cgroup):
            os.close(fd)
        path.rmdir()


def test_a_refused_program_tells_why() -> None:
    with pytest.raises(OSError, match="last insn is not an exit"):
        bpf.prog_load(RETURN_1[:8])


def test_loopback() -> None:
    def check() -> None:
        assert not netlink.link_is_up("lo")
        netlink.link_up("lo")
        assert netlink.link_is_up("lo")
        with pytest.raises(OSError, match="No such device"):
            netlink.link_up("eth77")

    run_in_child(check, CLONE_NEWNET)


def test_structures_have_the_kernels_sizes() -> None:
    assert struct.calcsize(loop._CONFIG.format) == 304
