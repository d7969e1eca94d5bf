"""Device nodes, links, terminals, standard streams."""

from __future__ import annotations

import os
import stat
from _socket import AF_UNIX, SOCK_STREAM, socketpair
from pathlib import Path

import pytest

from shimd.init.handshake import Message
from shimd.linux import fdpass, pty
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import device, in_rootfs, program, run, shell
from tests.support import wait


def link(path: str, target: str, **fields: object) -> ops.Symlink:
    return ops.Symlink(path, target, **{"replace": False, "only_if": "", **fields})  # type: ignore[arg-type]


def test_nodes_have_their_mode_and_owner_whatever_the_umask(busybox: Path) -> None:
    nodes = (device("/dev/zero", 1, 5, mode=0o640, uid=7, gid=8), device("/dev/sub/pipe", 0, 0, kind="p", mode=0o622))
    outcome = run(*in_rootfs(busybox, *nodes), *shell("stat -c '%F %a %u %g %t:%T' /dev/zero /dev/sub/pipe"))
    assert outcome.output.splitlines() == ["character special file 640 7 8 1:5", "fifo 622 0 0 0:0"]


def test_node_that_is_there_already_must_be_the_same(busybox: Path) -> None:
    assert run(*in_rootfs(busybox, rig.NULL), *program("/bin/true")).failure is None
    outcome = run(*in_rootfs(busybox, device("/dev/null", 1, 5)), *program("/bin/true"))
    assert outcome.failure is not None
    assert "different file" in outcome.failure.text


def test_host_node_is_bound_where_none_can_be_made(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, device("/dev/full", 1, 7, bind=True)), *shell("echo x > /dev/full"))
    assert "No space left" in outcome.output
    outcome = run(*in_rootfs(busybox, device("/dev/zero", 1, 7, bind=True)), *program("/bin/true"))
    assert outcome.failure is not None


def test_links_are_kept_replaced_or_conditional(busybox: Path) -> None:
    links = (link("/dev/a", "one"), link("/dev/a", "two"), link("/dev/b", "one"), link("/dev/b", "two", replace=True))
    conditional = (link("/dev/c", "x", only_if="/proc/version"), link("/dev/d", "x", only_if="/nonexistent"))
    outcome = run(*in_rootfs(busybox, *links, *conditional), *shell("for x in a b c d; do readlink /dev/$x; done"))
    assert outcome.output.split() == ["one", "two", "x"]


@pytest.mark.parametrize("operation", [rig.NULL, link("/dev/x", "y", replace=True)])
def test_dev_as_a_link_is_refused(busybox: Path, tmp_path: Path, operation: ops.Op) -> None:
    """CVE-2026-41579, CVE-2026-47766: nodes and links would be made in, and names removed from, a volume."""
    (busybox / "dev").rmdir()
    (busybox / "dev").symlink_to("volume")
    (tmp_path / "x").touch()
    operations = (rig.prepare(busybox), rig.PROC, rig.bind(tmp_path, "/volume"), operation)
    outcome = run(*operations, *program("/bin/true"))
    assert outcome.failure is not None
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").is_file()


class Master:
    """Takes the pty of a container and reads it to its end."""

    def __init__(self) -> None:
        self.fd = -1

    def __call__(self, pid: int, message: Message) -> None:
        if message.kind == "console":
            self.fd = message.fd

    def text(self) -> str:
        try:
            return wait.read_to_end(self.fd).decode()
        finally:
            os.close(self.fd)


TERMINAL = ops.Terminal(1000, 30, 90, console_device=True)


def with_terminal(rootfs: Path, *operations: ops.Op) -> tuple[ops.Op, ...]:
    nodes = (rig.NULL, device("/dev/tty", 5, 0))
    return (rig.prepare(rootfs), rig.PROC, rig.DEV, *nodes, rig.DEV_PTS, *operations, rig.PIVOT, TERMINAL)


def test_terminal_is_the_controlling_one_and_has_its_size_and_owner(busybox: Path) -> None:
    master = Master()
    script = "tty; stty size; stat -c %u /dev/pts/0; echo hello > /dev/tty; echo console > /dev/console"
    outcome = run(*with_terminal(busybox), *shell(script), on_message=master)
    assert outcome.failure is None
    assert master.text().split() == ["/dev/pts/0", "30", "90", "1000", "hello", "console"]


def test_master_goes_to_the_console_socket(busybox: Path) -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    outcome = run(*with_terminal(busybox), *shell("echo hello"), fds={"console": theirs.fileno()})
    name, (fd,) = fdpass.recv(mine, 4096)
    assert outcome.failure is None
    assert name == b"/dev/pts/0"
    assert pty.get_winsize(fd) == (30, 90)
    assert wait.read_to_end(fd) == b"hello\r\n"
    os.close(fd)
    mine.close()
    theirs.close()


@pytest.mark.parametrize("fake", ["pipe", "file", "link", "null"])
def test_only_the_real_multiplexer_is_opened(busybox: Path, fake: str) -> None:
    """CVE-2025-52565; and a pipe must not make init wait."""
    pts = busybox / "dev/pts"
    pts.mkdir()
    if fake == "pipe":
        os.mkfifo(pts / "ptmx")
    elif fake == "file":
        (pts / "ptmx").touch()
    elif fake == "link":
        (pts / "ptmx").symlink_to("/etc/passwd")
    else:
        os.mknod(pts / "ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))  # the right device, on no devpts
    outcome = run(rig.prepare(busybox), rig.PROC, rig.PIVOT, TERMINAL, *program("/bin/true"))
    assert outcome.failure is not None
    assert "not the pty multiplexer" in outcome.failure.text


def test_console_that_is_a_link_is_covered_and_not_followed(busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("as it was")
    operations = (rig.bind(tmp_path, "/volume"), link("/dev/console", "/volume/victim"))
    master = Master()
    outcome = run(*with_terminal(busybox, *operations), *shell("echo x > /dev/console"), on_message=master)
    assert outcome.failure is None
    assert master.text() == "x\r\n"
    assert (tmp_path / "victim").read_text() == "as it was"


def test_streams_without_slots_are_the_containers_null_device(busybox: Path) -> None:
    outcome = run(
        *in_rootfs(busybox),
        *shell("readlink /proc/self/fd/0; stat -L -c %t:%T /proc/self/fd/0; ls /proc/self/fd | wc -l"),
    )
    assert outcome.output.split() == ["/dev/null", "1:3", "4"]


def test_streams_belong_to_the_user(busybox: Path, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        operations = (rig.prepare(busybox), rig.PROC, rig.DEV, rig.NULL, rig.PIVOT, ops.Stdio(1000))
        outcome = run(*operations, *shell("echo out; echo err >&2"), fds={"stdout": log.fileno()})
    assert os.stat(tmp_path / "log").st_uid == 1000
    assert (tmp_path / "log").read_text() == "out\n"
    assert outcome.output == "err\n"
    assert os.stat("/dev/null").st_uid == 0


def test_slots_that_are_standard_streams_of_the_launcher(busybox: Path) -> None:
    """A launcher passes its own 0, 1 and 2 in any order; none may overwrite another."""
    saved = [os.dup(number) for number in range(3)]
    read_end, write_end = os.pipe()
    try:
        os.dup2(write_end, 2)
        outcome = run(*in_rootfs(busybox), *shell("echo out"), fds={"stdout": 2, "stderr": 1, "stdin": 0})
    finally:
        for number, fd in enumerate(saved):
            os.dup2(fd, number)
            os.close(fd)
        os.close(write_end)
    assert outcome.failure is None
    assert wait.read_to_end(read_end) == b"out\n"
    os.close(read_end)


def test_no_descriptor_but_the_slots_and_no_wider_ones(busybox: Path) -> None:
    outside = os.open("/", os.O_PATH)  # as a careless launcher might leave it open, not even close-on-exec
    os.set_inheritable(outside, True)  # noqa: FBT003
    try:
        listing = "ls -l /proc/self/fd 2>/dev/null | grep -c ' [0-9]* -> '"
        outcome = run(*in_rootfs(busybox), *shell(listing), clone=CLONE_NEWNS | CLONE_NEWPID)
    finally:
        os.close(outside)
    assert outcome.output == "3\n"  # the listing's own is gone before it is asked for
