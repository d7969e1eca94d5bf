"""run: the streams, the exit code, and what is left, of a container in the foreground and of a detached one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.container.boxes import Box
from tests.support import wait


def popen(box: Box, *options: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """A container in the foreground, that nobody types to."""
    box.write()
    command = [*box.runtime.command, "run", "--bundle", str(box.bundle), *options, box.id]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout)


def test_output_and_exit_code(box: Box) -> None:
    box.shell("echo out; echo err >&2; exit 7")
    answer = box.run()
    assert (answer.code, answer.output, answer.errors) == (7, "out\n", "err\n")


def test_nothing_is_left(box: Box) -> None:
    box.output("true")
    assert os.listdir(box.runtime.root) == []
    assert not box.cgroup("pids").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_exit_code_of_a_signal(box: Box, number: int) -> None:
    box.spec["linux"]["namespaces"] = [entry for entry in box.spec["linux"]["namespaces"] if entry["type"] != "pid"]
    box.shell(f"kill -{number} $$")
    assert box.run().code == 128 + number


def test_the_exit_code_of_a_first_process_that_is_killed(box: Box) -> None:
    box.spec["process"]["args"] = ["sleep", "1000"]
    with popen(box) as process:
        while box.runtime.run("state", box.id).code != 0 or box.status() != "running":
            assert process.poll() is None
        box.runtime("kill", box.id, "KILL")
        assert process.wait(wait.SECONDS) == 137


def test_stdin_is_passed_on_to_its_end(box: Box) -> None:
    data = os.urandom(1 << 20)
    box.shell("md5sum; wc -c </dev/null")
    expected = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout.decode()
    assert box.run(stdin=data).output == f"{expected}0\n"


def test_much_output_on_both_streams(box: Box) -> None:
    answer_lines = 20_000
    box.shell(f"seq {answer_lines} & seq {answer_lines} >&2; wait")
    answer = box.run()
    lines = "".join(f"{number}\n" for number in range(1, answer_lines + 1))
    assert (answer.code, answer.output, answer.errors) == (0, lines, lines)


def test_output_without_a_line_break_is_there_at_the_end(box: Box) -> None:
    assert box.output("printf 'no line'; printf ' break'") == "no line break"


def test_a_program_that_does_not_read(box: Box) -> None:
    """More than pipes hold."""
    assert box.output("echo done", stdin=bytes(1 << 20)) == "done\n"


def test_a_reader_that_goes_away(box: Box) -> None:
    box.shell("yes")
    process = popen(box, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    with process:
        assert process.wait(wait.SECONDS) in (1, 128 + signal.SIGPIPE)


def test_a_reader_that_is_slow(box: Box) -> None:
    box.shell("seq 100000; echo end")
    with popen(box, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = b""
        while chunk := process.stdout.read(7919):
            text += chunk
        assert text.endswith(b"\n100000\nend\n")
        assert process.wait(wait.SECONDS) == 0


def test_closed_streams(box: Box) -> None:
    box.shell("cat; echo lost; ls /proc/self/fd")
    box.write()
    command = " ".join([*box.runtime.command, "run", "--bundle", str(box.bundle), box.id])
    done = subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"], check=False, timeout=60)
    assert done.returncode == 0


def test_pipes_in_place_of_the_callers_files(box: Box) -> None:
    """What the container can do to a stream is write to it."""
    output = box.output("for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done")
    assert [line.split(":")[0] for line in output.splitlines()] == ["pipe"] * 3


def test_a_user_may_open_its_streams_again(box: Box) -> None:
    box.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    assert box.output("echo again >/proc/self/fd/1; cat /proc/self/fd/0", stdin=b"input\n") == "again\ninput\n"


def test_keep(box: Box) -> None:
    box.shell("exit 3")
    assert box.run("--keep").code == 3
    assert box.status() == "stopped"
    box.runtime("delete", box.id)


def test_detached(box: Box) -> None:
    box.spec["process"]["args"] = ["sleep", "1000"]
    answer = box.run("--detach")
    assert (answer.code, answer.output) == (0, "")
    assert box.status() == "running"
    parent = Path(f"/proc/{box.state()['pid']}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) == os.getpid()  # the subreaper


def test_a_detached_one_has_the_streams_of_the_caller(box: Box, place: Path) -> None:
    box.shell("readlink /proc/$$/fd/1 | cat >&2; echo out; exec sleep 1000")
    box.write()
    out, err = place / "out", place / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        command = [*box.runtime.command, "run", "-d", "--bundle", str(box.bundle), box.id]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, check=True, timeout=60)
    while not out.read_text():
        assert box.status() == "running"
    assert out.read_text() == "out\n"
    assert str(out) in err.read_text()


def test_the_streams_of_a_detached_one_belong_to_its_user(box: Box, place: Path) -> None:
    box.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    box.shell("echo again >/proc/self/fd/1; exec sleep 1000")
    read_end, write_end = os.pipe()
    box.write()
    command = [*box.runtime.command, "run", "-d", "--bundle", str(box.bundle), box.id]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, check=True, timeout=60)
    os.close(write_end)
    assert wait.read_until(read_end, b"\n") == b"again\n"
    assert os.fstat(read_end).st_uid == 1000
    os.close(read_end)


def test_a_program_that_is_not_there(box: Box) -> None:
    box.spec["process"]["args"] = ["/nosuch"]
    answer = box.run()
    assert answer.code == 1
    assert "no such file or directory" in answer.errors
    assert os.listdir(box.runtime.root) == []


def test_a_container_that_somebody_else_deletes(box: Box) -> None:
    box.spec["process"]["args"] = ["sleep", "1000"]
    with popen(box) as process:
        while box.runtime.run("state", box.id).code != 0 or box.status() != "running":
            assert process.poll() is None
        box.runtime("delete", "--force", box.id)
        assert process.wait(wait.SECONDS) == 137


def test_poststop_hooks_run_in_the_end(box: Box) -> None:
    marker = box.bundle / "ended"
    box.spec["hooks"] = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >{marker}"]}]}
    box.output("true")
    assert '"status":"stopped"' in marker.read_text().replace(" ", "")


def test_orphans_of_a_container_in_the_pid_namespace_of_the_host_are_adopted(box: Box) -> None:
    """And reaped, or they would be zombies as long as we live."""
    box.spec["linux"]["namespaces"] = [entry for entry in box.spec["linux"]["namespaces"] if entry["type"] != "pid"]
    box.shell("(sh -c 'echo $$; exec sleep 0.2' &); read x; exit 4")
    box.write()
    command = [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        orphan = int(wait.read_until(process.stdout.fileno(), b"\n"))
        deadline = time.monotonic() + wait.SECONDS
        while Path(f"/proc/{orphan}").exists():  # a zombie does, too
            assert time.monotonic() < deadline, Path(f"/proc/{orphan}/stat").read_text()
        process.communicate(b"\n")
        assert process.returncode == 4
