"""shimctl on a terminal: as in docker, and the terminal is put right whatever happens."""

from __future__ import annotations

import os
import signal
import termios
from pathlib import Path

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.commands import Shimctl, remove_all
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.rootfs import busybox_rootfs

INTERACTIVE = ("--interactive", "--tty")
DETACH_KEYS = "\x10\x11"
PROMPT = "# "


def is_raw(modes: list[object]) -> bool:
    local = modes[3]
    assert isinstance(local, int)
    return not local & (termios.ECHO | termios.ICANON | termios.ISIG)


def gone(client: Client) -> None:
    """Until there is no container any more: a run that was left is ended in the background."""
    deletions = client.runtime.Events(api.EventsRequest(since=1, topics=["/tasks/delete"]))
    while client.runtime.List(api.ListRequest()).containers:
        next(deletions)
    deletions.cancel()


def test_shell(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", options=INTERACTIVE), rows=33, columns=99) as terminal:
        before = terminal.modes()
        terminal.read_until(PROMPT)
        assert is_raw(terminal.modes())
        terminal.type("tty; stty size; echo $TERM\n")
        assert "/dev/pts/0\r\n33 99\r\nxterm\r\n" in terminal.read_until("xterm\r\n")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5
        assert terminal.modes() == before


def test_resizes_reach_the_program(shimctl: Shimctl) -> None:
    script = "trap 'stty size; exit 4' WINCH; echo ready; while :; do usleep 10000; done"
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", "-c", script, options=INTERACTIVE)) as terminal:
        terminal.read_until("ready")
        terminal.resize(50, 132)
        terminal.read_until("50 132")
        assert terminal.wait() == 4


def test_control_c_is_a_byte(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", options=INTERACTIVE)) as terminal:
        terminal.read_until(PROMPT)
        terminal.type("echo rea''dy; cat\n")
        terminal.read_until("ready")
        terminal.type("typed\n")
        terminal.read_until("typed\r\ntyped")
        terminal.type("\x03")
        terminal.read_until(PROMPT)
        terminal.type("echo status $?\n")
        terminal.read_until(f"status 130\r\n/ {PROMPT}")  # before its prompt the shell would not see the end
        terminal.type("\x04")  # control-d: the end of the shell's input
        assert terminal.wait() == 0


def test_bytes_pass_unchanged(shimctl: Shimctl) -> None:
    script = "stty raw -echo; echo ready; head -c 5 | od -An -tx1; stty sane"
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", "-c", script, options=INTERACTIVE)) as terminal:
        terminal.read_until("ready")
        os.write(terminal.master, b"\x00\x03\x1a\xff\x7f")
        terminal.read_until("00 03 1a ff 7f")
        assert terminal.wait() == 0


def test_output_before_the_end_is_whole(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(
        *shimctl.in_rootfs("sh", "-c", "seq 1 5000; echo the end", options=INTERACTIVE)
    ) as terminal:
        output = terminal.read_until("the end")
        assert terminal.wait() == 0
        assert output.split() == [*map(str, range(1, 5001)), "the", "end"]


def test_without_interactive_nothing_is_passed_on(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", "-c", "stty size; exit 3", options=("--tty",))) as terminal:
        terminal.read_until("24 80")
        assert terminal.wait() == 3


def test_sigterm_is_passed_on(shimctl: Shimctl) -> None:
    script = "trap 'exit 9' TERM; echo ready; while :; do usleep 10000; done"
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", "-c", script, options=INTERACTIVE)) as terminal:
        before = terminal.modes()
        terminal.read_until("ready")
        terminal.signal(signal.SIGTERM)
        assert terminal.wait() == 9
        assert not is_raw(terminal.modes())
        assert not is_raw(before)


def test_third_sigterm_ends_it(shimctl: Shimctl, client: Client) -> None:
    """A program may ignore it, and the first process of a pid namespace does so by default, pid_namespaces(7)."""
    script = "trap 'echo heard' TERM; echo ready; while :; do usleep 10000; done"
    with shimctl.on_terminal(*shimctl.in_rootfs("sh", "-c", script, options=INTERACTIVE)) as terminal:
        terminal.read_until("ready")
        for _ in range(2):
            terminal.signal(signal.SIGTERM)
            terminal.read_until("heard")
        terminal.signal(signal.SIGTERM)
        assert terminal.wait() == 143
        assert not is_raw(terminal.modes())
    gone(client)


def test_hang_up(shimctl: Shimctl, client: Client) -> None:
    """Who closes the terminal's window ends the run, for there is nobody left to see or say anything."""
    terminal = shimctl.on_terminal(*shimctl.in_rootfs("sh", options=INTERACTIVE))
    with terminal:
        terminal.read_until(PROMPT)
        os.close(terminal.master)
        terminal.master = os.open("/dev/null", os.O_RDWR)
        assert terminal.wait() == 129
    gone(client)


def test_killed_daemon(place: Path) -> None:
    rootfs = busybox_rootfs(place / "rootfs")
    with Daemon(place / "own") as daemon, daemon.client() as client:
        shimctl = Shimctl(daemon.socket, client, rootfs)
        with shimctl.on_terminal(*shimctl.in_rootfs("sh", options=INTERACTIVE)) as terminal:
            before = terminal.modes()
            terminal.read_until(PROMPT)
            daemon.kill()
            assert "does not answer" in terminal.read_until("does not answer")
            assert terminal.wait() == 125
            assert terminal.modes() == before
        daemon.start()
        remove_all(client)


def test_exec(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    with shimctl.on_terminal("exec", "-it", "box", "stty", "size", rows=40, columns=120) as terminal:
        terminal.read_until("40 120")
        assert terminal.wait() == 0
    with shimctl.on_terminal("exec", *INTERACTIVE, "--env", "A=b", "box", "sh") as terminal:
        before = terminal.modes()
        terminal.read_until(PROMPT)
        assert is_raw(terminal.modes())
        terminal.type("echo $A $TERM; tty; exit 7\n")
        terminal.read_until("b xterm\r\n/dev/pts/")
        assert terminal.wait() == 7
        assert terminal.modes() == before
    assert shimctl("list", "--quiet").stdout == "box\n"


def test_detach_and_attach(shimctl: Shimctl) -> None:
    run = shimctl.in_rootfs("sh", options=(*INTERACTIVE, "--keep", "--id", "box"))
    with shimctl.on_terminal(*run) as terminal:
        before = terminal.modes()
        terminal.read_until(PROMPT)
        terminal.type("variable=kept\n")
        terminal.read_until(PROMPT)
        terminal.type(DETACH_KEYS)
        assert terminal.wait() == 0
        assert terminal.modes() == before
    with shimctl.on_terminal("attach", "box", rows=44, columns=111) as terminal:
        before = terminal.modes()
        terminal.type("echo $variable; stty size\n")
        terminal.read_until("kept\r\n44 111")
        terminal.type("\x10x\x15exit 6\n")  # half of the keys is passed on; control-u takes it back
        assert terminal.wait() == 6
        assert terminal.modes() == before
    assert shimctl("wait", "box", code=6)
    shimctl("delete", "box")


def test_detach_keys_mean_nothing_to_a_run_that_cannot_be_left(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(
        *shimctl.in_rootfs("sh", "-c", "stty raw -echo; echo ready; head -c 2 | od -An -tx1", options=INTERACTIVE)
    ) as t:
        t.read_until("ready")
        t.type(DETACH_KEYS)
        t.read_until("10 11")
        assert t.wait() == 0


def test_program_that_is_not_there_leaves_the_terminal_alone(shimctl: Shimctl) -> None:
    with shimctl.on_terminal(*shimctl.in_rootfs("nowhere", options=INTERACTIVE)) as terminal:
        before = terminal.modes()
        terminal.read_until("executable file not found in $PATH\r\n")
        assert terminal.wait() == 127
        assert terminal.modes() == before


def test_top_is_left_as_it_was_entered(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with shimctl.on_terminal("top", "--interval", "0.1") as terminal:
            shown = terminal.read_until("box")
            assert "\x1b[?1049h" in shown  # the other screen
            terminal.signal(number)
            assert "\x1b[?25h" in terminal.read_until("\x1b[?1049l") or "\x1b[?25h" in shown
            assert terminal.wait() == code


def test_two_at_once(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    run = shimctl.in_rootfs("echo", "one", options=INTERACTIVE)
    with shimctl.on_terminal(*run) as first, shimctl.on_terminal("exec", "-it", "box", "echo", "two") as second:
        first.read_until("one")
        second.read_until("two")
        assert (first.wait(), second.wait()) == (0, 0)
