"""Containers with a terminal, in the foreground of one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.container.boxes import IS_OURS, Box, Runtime
from tests.support.terminal import Terminal


def prepare(box: Box, *args: str) -> list[str]:
    """The command that runs it."""
    box.spec["process"]["terminal"] = True
    box.spec["process"]["args"] = list(args)
    box.write()
    return [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id]


def test_a_shell(box: Box) -> None:
    with Terminal(prepare(box, "sh"), rows=31, columns=97) as terminal:
        before = terminal.modes()
        terminal.read_until("# ")
        terminal.type("tty; stty size; echo sum $((40+2))\n")
        text = terminal.read_until("sum 42")
        assert "/dev/pts/0" in text
        assert "31 97" in text
        terminal.type("exit 5\n")
        assert terminal.wait() == 5
        assert terminal.modes() == before
    assert os.listdir(box.runtime.root) == []


def test_it_has_its_size_from_the_start(box: Box) -> None:
    with Terminal(prepare(box, "stty", "size"), rows=12, columns=34) as terminal:
        assert terminal.read_until("\n").strip() == "12 34"
        assert terminal.wait() == 0


def test_a_new_size_is_passed_on(box: Box) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with Terminal(prepare(box, "sh", "-c", script)) as terminal:
        terminal.read_until("ready")
        for rows, columns in ((50, 132), (5, 40)):
            terminal.resize(rows, columns)
            terminal.read_until(f"{rows} {columns}")
        box.runtime("kill", box.id, "KILL")
        assert terminal.wait() == 137


def test_lines_end_as_on_any_terminal(box: Box) -> None:
    """The pty of the container adds no carriage returns, so that only one terminal does."""
    with Terminal(prepare(box, "sh", "-c", "echo one; echo two")) as terminal:
        assert terminal.read_until("two\r\n") == "one\r\ntwo\r\n"
        assert terminal.wait() == 0


def test_keys_that_mean_signals_are_for_the_container(box: Box) -> None:
    with Terminal(
        prepare(box, "sh", "-c", "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done")
    ) as terminal:
        terminal.read_until("ready")
        terminal.type("\x03")
        terminal.read_until("interrupted")
        assert terminal.wait() == 3


def test_the_terminal_is_put_right_when_the_container_is_killed(box: Box) -> None:
    with Terminal(prepare(box, "sh", "-c", "echo ready; exec sleep 1000")) as terminal:
        before = terminal.modes()
        terminal.read_until("ready")
        assert terminal.modes() != before
        box.runtime("kill", box.id, "KILL")
        assert terminal.wait() == 137
        assert terminal.modes() == before


def test_the_terminal_is_put_right_when_there_is_no_program(box: Box) -> None:
    with Terminal(prepare(box, "/nosuch")) as terminal:
        before = terminal.modes()
        assert terminal.wait() == 1
        assert terminal.modes() == before


def test_output_that_is_not_read_at_once_is_whole(box: Box) -> None:
    with Terminal(prepare(box, "sh", "-c", "seq 5000; echo end")) as terminal:
        text = terminal.read_until("end\r\n")
        assert text == "".join(f"{number}\r\n" for number in range(1, 5001)) + "end\r\n"
        assert terminal.wait() == 0


def test_only_one_of_the_streams_is_a_terminal(box: Box, place: Path) -> None:
    output = place / "output"
    command = " ".join(prepare(box, "sh", "-c", "echo to the file; test -t 1"))
    with Terminal(["sh", "-c", f"{command} >{output} </dev/null"]) as terminal:
        assert terminal.wait() == 0
    assert output.read_text() == "to the file\n"


def test_a_slow_reader_gets_all_of_it(box: Box, place: Path) -> None:
    output = place / "output"
    command = " ".join(prepare(box, "sh", "-c", "seq 20000; echo end"))
    with Terminal(["bash", "-c", f"{command} | (sleep 1; cat >{output})"]) as terminal:
        assert terminal.wait() == 0
    assert output.read_text() == "".join(f"{number}\n" for number in range(1, 20001)) + "end\n"


def test_without_any_terminal(box: Box) -> None:
    """setsid(1): otherwise that of whoever runs the tests would do."""
    done = subprocess.run(
        ["setsid", "--wait", *prepare(box, "true")], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"/dev/tty" in done.stderr
    assert os.listdir(box.runtime.root) == []


def test_exec_on_the_terminal(box: Box) -> None:
    box.start()
    size = "stty size" if IS_OURS else "echo 20 60"  # runc 1.1 sets it too late
    command = [*box.runtime.command, "exec", "--tty", box.id, "sh", "-c", f"tty; {size}; read x; echo got $x; exit 8"]
    with Terminal(command, rows=20, columns=60) as terminal:
        before = terminal.modes()
        text = terminal.read_until("20 60")
        assert "/dev/pts/0" in text
        terminal.type("typed\n")
        terminal.read_until("got typed")
        assert terminal.wait() == 8
        assert terminal.modes() == before


def test_exec_is_over_though_something_holds_its_terminal(box: Box) -> None:
    box.start()
    command = [*box.runtime.command, "exec", "-t", box.id, "sh", "-c", "trap '' HUP; sleep 1000 & echo end"]
    with Terminal(command) as terminal:
        terminal.read_until("end")
        assert terminal.wait() == 0


def test_the_process_has_the_terminal_as_its_controlling_one(box: Box) -> None:
    with Terminal(prepare(box, "sh", "-c", "echo by name >/dev/tty; ls -l /dev/console /proc/1/fd/0")) as terminal:
        text = terminal.read_until("/dev/pts/0")
        assert "by name" in text
        assert terminal.wait() == 0


def test_a_terminal_that_hangs_up(box: Box) -> None:
    with Terminal(prepare(box, "sh", "-c", "trap 'exit 7' HUP; echo ready; while :; do sleep 0.05; done")) as terminal:
        terminal.read_until("ready")
        terminal.signal(signal.SIGHUP)
        assert terminal.wait() == 7


def test_a_console_socket_is_for_those_who_detach(box: Box, runtime: Runtime, place: Path) -> None:
    prepare(box, "true")
    errors = runtime.fails("create", "--bundle", str(box.bundle), box.id)
    assert "cannot allocate tty if runc will detach without setting console socket" in errors
    errors = runtime.fails("run", "--bundle", str(box.bundle), "--console-socket", str(place / "none"), box.id)
    assert "cannot use console socket if runc will not detach or allocate tty" in errors
    assert os.listdir(runtime.root) == []
