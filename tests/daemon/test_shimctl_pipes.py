"""shimctl in pipelines and scripts: streams, signals, exit codes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.commands import Shimctl
from tests.support import wait
from tests.support.client import Client

MIB = 1 << 20
TRAPS = "trap 'exit 7' INT; trap 'exit 8' TERM; trap 'exit 9' USR1; echo ready; while :; do usleep 10000; done"


def test_both_streams_and_the_exit_code(shimctl: Shimctl) -> None:
    done = shimctl(*shimctl.in_rootfs("sh", "-c", "echo out; echo err >&2; exit 3"), code=3)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("false",), 1),
        (("sh", "-c", "exit 255"), 255),
        (("nowhere",), 127),
        (("/no/where",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
    ids=str,
)
def test_exit_codes(shimctl: Shimctl, command: tuple[str, ...], code: int) -> None:
    shimctl(*shimctl.in_rootfs(*command), code=code)


def test_exit_codes_of_exec(shimctl: Shimctl) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    killed = ("sh", "-c", "kill -9 $$")
    for command, code in ((("sh", "-c", "exit 4"), 4), (killed, 137), (("nowhere",), 127), (("/etc/passwd",), 126)):
        shimctl("exec", "box", *command, code=code)
    shimctl("exec", "nobody", "true", code=125)
    assert shimctl("list", "--quiet").stdout == "box\n"


@pytest.mark.parametrize("attempt", range(4))
def test_input_that_nobody_takes_hides_no_end(shimctl: Shimctl, attempt: int) -> None:
    """It is being sent when the call ends."""
    much = bytes(8 * MIB)
    assert "container nobody not found" in shimctl("attach", "nobody", stdin=much, code=125).stderr
    assert "nowhere" in shimctl(*shimctl.in_rootfs("nowhere", options=("-i",)), stdin=much, code=127).stderr
    shimctl(*shimctl.in_rootfs("sh", "-c", "exit 7", options=("-i",)), stdin=much, code=7)


def test_input(shimctl: Shimctl) -> None:
    assert shimctl(*shimctl.in_rootfs("cat", options=("-i",)), stdin=b"through\n").stdout == "through\n"
    assert shimctl(*shimctl.in_rootfs("cat", options=("-i",)), stdin=b"").stdout == ""
    assert shimctl(*shimctl.in_rootfs("cat"), stdin=b"not passed on\n").stdout == ""
    shimctl.daemonized("box", "sleep", "1000")
    assert shimctl("exec", "-i", "box", "wc", "-c", stdin=b"x" * 100_000).stdout == "100000\n"


def test_input_that_the_program_does_not_want(shimctl: Shimctl) -> None:
    done = shimctl(*shimctl.in_rootfs("head", "-c", "2", options=("-i",)), stdin=b"ab" * MIB)
    assert done.stdout == "ab"


def test_input_from_a_file_and_from_nowhere(shimctl: Shimctl, place: Path) -> None:
    (place / "file").write_bytes(b"x" * 3 * MIB)
    for path, count in ((place / "file", 3 * MIB), (Path("/dev/null"), 0)):
        with open(path) as file:
            with shimctl.begin(*shimctl.in_rootfs("wc", "-c", options=("-i",)), stdin=file) as process:
                assert process.communicate(timeout=wait.SECONDS)[0] == b"%d\n" % count


def test_input_of_a_pipe_that_stays_open(shimctl: Shimctl) -> None:
    """The end is the program's, not that of its input."""
    with shimctl.begin(*shimctl.in_rootfs("head", "-n", "1", options=("-i",))) as process:
        assert process.stdin is not None
        process.stdin.write(b"line\n")
        process.stdin.flush()
        assert process.wait(wait.SECONDS) == 0


def test_hundred_mebibytes_for_a_slow_reader(shimctl: Shimctl) -> None:
    """Nobody keeps what the reader does not take: neither shimctl nor the daemon grows with it."""
    size = 100 * MIB
    with shimctl.begin(*shimctl.in_rootfs("head", "-c", str(size), "/dev/zero")) as process:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        total = len(wait.read_some(fd))
        before = _resident(process.pid)
        while total < 10 * MIB:  # in small bites
            total += len(wait.read_some(fd, size=4096))
        grown = _resident(process.pid) - before
        while chunk := wait.read_some(fd, size=MIB):
            total += len(chunk)
        assert process.wait(wait.SECONDS) == 0
    assert total == size
    assert grown < 16 * MIB


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_reader_that_goes_away(shimctl: Shimctl, client: Client) -> None:
    with shimctl.begin(*shimctl.in_rootfs("yes")) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(wait.SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
    deletions = client.runtime.Events(api.EventsRequest(since=1, topics=["/tasks/delete"]))
    assert next(deletions).topic == "/tasks/delete"
    deletions.cancel()


def test_table_whose_reader_goes_away(shimctl: Shimctl) -> None:
    with shimctl.begin("--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(wait.SECONDS)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, 8), (signal.SIGUSR1, 9)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_signals_are_passed_on(shimctl: Shimctl, verb: str, number: int, code: int) -> None:
    command = shimctl.in_rootfs("sh", "-c", TRAPS)
    if verb == "exec":
        shimctl.daemonized("box", "sleep", "1000")
        command = ("exec", "box", "sh", "-c", TRAPS)
    with shimctl.begin(*command) as process:
        _until_ready(process)
        process.send_signal(number)
        assert process.wait(wait.SECONDS) == code


def _until_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    wait.read_until(process.stdout.fileno(), b"ready\n")


def test_signals_are_passed_on_while_nobody_reads(shimctl: Shimctl, client: Client) -> None:
    shimctl.daemonized("box", "sleep", "1000")
    with shimctl.begin("exec", "box", "yes") as process:
        assert process.stdout is not None
        _fill(process.stdout.fileno())
        process.send_signal(signal.SIGINT)
        exits = client.runtime.Events(api.EventsRequest(since=1, topics=["/tasks/exit"]))
        assert next(exits).topic == "/tasks/exit"
        exits.cancel()
        while wait.read_some(process.stdout.fileno(), size=MIB):
            pass
        assert process.wait(wait.SECONDS) == 130


def _fill(pipe: int) -> None:
    """Until it takes no more. One page, for its slots may be full with little in each."""
    size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    waiting = bytearray(4)
    while int.from_bytes(waiting, "little") < size:
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
        os.sched_yield()


def test_killed_client_takes_its_container_along(shimctl: Shimctl, client: Client) -> None:
    with shimctl.begin(*shimctl.in_rootfs("sh", "-c", "echo ready; sleep 1000")) as process:
        _until_ready(process)
        process.kill()
    deletions = client.runtime.Events(api.EventsRequest(since=1, topics=["/tasks/delete"]))
    assert next(deletions).topic == "/tasks/delete"
    deletions.cancel()


def test_killed_client_of_a_kept_container_does_not(shimctl: Shimctl) -> None:
    script = shimctl.in_rootfs("sh", "-c", "echo ready; sleep 1000", options=("--keep", "--id", "box"))
    with shimctl.begin(*script) as process:
        _until_ready(process)
        process.kill()
    assert [found["status"] for found in shimctl.json("list")] == ["RUNNING"]
    shimctl("delete", "--force", "box")


def test_attach_without_a_terminal(shimctl: Shimctl) -> None:
    shimctl(*shimctl.in_rootfs("cat", options=("--detach", "--interactive", "--id", "box")))
    with shimctl.begin("attach", "box") as process:
        assert process.communicate(b"to and fro\n", timeout=wait.SECONDS)[0] == b"to and fro\n"
        assert process.returncode == 0
    shimctl("delete", "box")
