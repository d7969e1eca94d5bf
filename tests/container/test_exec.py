"""exec: one more process in a container, described by options or by a document."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import OURS_ONLY, Box
from tests.support import wait
from tests.support.requires import requires

KINDS = ("bounding", "effective", "permitted", "inheritable", "ambient")
NO_CAPABILITIES: dict[str, list[str]] = {kind: [] for kind in KINDS}


@pytest.fixture
def running(box: Box) -> Box:
    box.spec["process"]["env"] = ["PATH=/bin:/usr/bin", "A=of the container"]
    box.start()
    return box


def output(box: Box, *args: str) -> str:
    answer = box.exec(*args)
    assert (answer.code, answer.errors) == (0, ""), answer
    return answer.output


def document(place: Path, **fields: Any) -> str:
    path = place / "process.json"
    path.write_text(json.dumps({"cwd": "/", "env": ["PATH=/bin"], "args": ["true"], **fields}))
    return str(path)


def test_streams_and_exit_code(running: Box) -> None:
    answer = running.exec("--", "sh", "-c", "cat; echo err >&2; exit 42", stdin=b"input\n")
    assert (answer.code, answer.output, answer.errors) == (42, "input\n", "err\n")


def test_the_exit_code_of_a_signal(running: Box) -> None:
    assert running.exec("--", "sh", "-c", "kill -TERM $$").code == 143


def test_options_of_the_command_are_its_own(running: Box) -> None:
    assert output(running, "--", "echo", "-e", "a", "--tty") == "a --tty\n"


def test_it_starts_from_the_process_of_the_container(running: Box) -> None:
    assert output(running, "--", "sh", "-c", "echo $A; pwd") == "of the container\n/\n"


def test_environment(running: Box) -> None:
    options = ("--env", "A=1,2", "--env=B=x=y", "--env", "C=", "-env", "A=last")
    assert output(running, *options, "--", "sh", "-c", 'echo "$A" "$B" "$C."') == "last x=y .\n"


def test_working_directory(running: Box) -> None:
    assert output(running, "--cwd", "/home/user", "--", "pwd") == "/home/user\n"
    assert "absolute" in running.exec("--cwd", "home", "--", "pwd").errors


@pytest.mark.parametrize(
    ("user", "ids"), [("1000", "1000 0"), ("1000:1001", "1000 1001"), ("0:5", "0 5"), ("4321:8765", "4321 8765")]
)
def test_user(running: Box, user: str, ids: str) -> None:
    assert output(running, "--user", user, "--", "sh", "-c", "echo $(id -u) $(id -g)") == f"{ids}\n"


@pytest.mark.parametrize("user", ["root", "user:user", "1000:", ":5", "1x", "0x10", "1000:root"])
def test_users_are_numbers(running: Box, user: str) -> None:
    """A name would be looked up in a file of the image (CVE-2016-3697)."""
    answer = running.exec("--user", user, "--", "id")
    assert answer.code == 255
    assert "uid" in answer.errors or "gid" in answer.errors


@OURS_ONLY  # others take some of these for another user
@pytest.mark.parametrize(
    "user", ["-1", "4294967295", "4294967296", "18446744073709551616", "9" * 5000, "1_000", "+5", " 5", "٣"]
)
def test_users_out_of_range(running: Box, user: str) -> None:
    answer = running.exec("-u", user, "--", "id")
    assert answer.code == 255
    assert "bad uid" in answer.errors


def test_additional_groups(running: Box) -> None:
    assert output(running, "-g", "7", "-g=2000", "-u", "5:6", "--", "id", "-G") == "6 7 2000\n"


def test_additional_capabilities(box: Box) -> None:
    box.spec["process"]["capabilities"] = NO_CAPABILITIES
    box.start()
    text = output(box, "--cap", "CAP_CHOWN", "-cap=CAP_KILL", "--", "grep", "^Cap", "/proc/self/status")
    assert {line.split()[0]: int(line.split()[1], 16) for line in text.splitlines()} == {
        "CapInh:": 0,  # CVE-2022-29162
        "CapPrm:": 0x21,
        "CapEff:": 0x21,
        "CapBnd:": 0x21,
        "CapAmb:": 0,
    }


def test_no_new_privileges(box: Box) -> None:
    box.spec["process"]["noNewPrivileges"] = False
    box.start()
    assert output(box, "--", "grep", "NoNewPrivs", "/proc/self/status") == "NoNewPrivs:\t0\n"
    assert output(box, "--no-new-privs", "--", "grep", "NoNewPrivs", "/proc/self/status") == "NoNewPrivs:\t1\n"


def test_a_document_in_place_of_options(running: Box, place: Path) -> None:
    path = document(
        place,
        args=["sh", "-c", "id -u; pwd; env"],
        user={"uid": 3, "gid": 4},
        cwd="/tmp",
        env=["PATH=/bin:/usr/bin", "B=1"],
    )
    answer = running.runtime.run("exec", "--process", path, "--env", "C=2", running.id)
    lines = answer.output.splitlines()
    assert lines[:2] == ["3", "/tmp"]
    assert "B=1" in lines
    assert not any(line.startswith(("C=", "A=")) for line in lines)


@pytest.mark.parametrize(
    "fields", [{"args": []}, {"args": None}, {"cwd": ""}, {"cwd": "x"}, {"user": {"uid": -1}}, {"args": "true"}]
)
def test_documents_that_are_wrong(running: Box, place: Path, fields: dict[str, Any]) -> None:
    answer = running.runtime.run("exec", "--process", document(place, **fields), running.id)
    assert answer.code == 255
    assert answer.errors.count("\n") == 1


def test_documents_that_are_none(running: Box, place: Path) -> None:
    (place / "file").write_text("{")
    for path in (place / "file", place / "none", place):
        answer = running.runtime.run("exec", "-p", str(path), running.id)
        assert (answer.code, answer.errors.count("\n")) == (255, 1)


def test_a_document_from_a_pipe(running: Box, place: Path) -> None:
    path = document(place, args=["echo", "from the pipe"])
    command = ["bash", "-c", f"{' '.join(running.runtime.command)} exec -p <(sleep 0.1; cat {path}) {running.id}"]
    assert running.runtime.run(command=command).output == "from the pipe\n"


def test_nothing_to_execute(running: Box) -> None:
    answer = running.exec()
    assert answer.code == 255
    assert "args" in answer.errors


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("nosuch", "executable file not found in $PATH"),
        ("/nosuch", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ],
)
def test_programs_that_cannot_be_executed(running: Box, program: str, words: str) -> None:
    answer = running.exec("--", program)
    assert answer.code == 255
    assert words in answer.errors
    assert answer.output == ""


def test_detached(running: Box, place: Path) -> None:
    pid_file = place / "pid"
    answer = running.exec("--detach", "--pid-file", str(pid_file), "--", "sleep", "1000")
    assert (answer.code, answer.output, answer.errors) == (0, "", "")
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    assert sorted(json.loads(running.runtime("ps", "-f", "json", running.id))) == sorted([running.state()["pid"], pid])


def test_a_created_container_takes_one_too(box: Box) -> None:
    box.create()
    assert output(box, "--", "echo", "before the start") == "before the start\n"
    assert box.status() == "created"


def test_a_stopped_container_does_not(running: Box) -> None:
    pid = running.state()["pid"]
    running.runtime("kill", running.id, "KILL")
    wait.process_gone(pid)
    answer = running.exec("--", "true")
    assert answer.code == 255
    assert "cannot exec in a stopped container" in answer.errors


def test_no_such_container(box: Box) -> None:
    assert box.runtime.fails("exec", "nosuch", "true", code=255).count("container does not exist") == 1


@requires("cgroup:freezer")
def test_a_paused_container(running: Box) -> None:
    running.runtime("pause", running.id)
    answer = running.exec("--", "true")
    assert answer.code == 255
    assert "cannot exec in a paused container (use --ignore-paused to override)" in answer.errors
    command = [*running.runtime.command, "exec", "--ignore-paused", running.id, "echo", "later"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        while len(json.loads(running.runtime("ps", "-f", "json", running.id))) < 2:
            assert process.poll() is None
        running.runtime("resume", running.id)
        assert process.stdout is not None
        assert process.stdout.read() == b"later\n"
        assert process.wait(wait.SECONDS) == 0


@requires("cgroup-mode:hybrid", "cgroup:cpu", "cgroup:memory")
def test_sub_cgroups_by_controller(running: Box) -> None:
    for controller in ("memory", "cpu"):
        (running.cgroup(controller) / "sub").mkdir()
    try:
        text = output(running, "--cgroup", "memory:sub", "--cgroup", "cpu:/sub", "--", "cat", "/proc/self/cgroup")
        found = {line.split(":")[1]: line.split(":")[2] for line in text.splitlines()}
        for controllers, path in found.items():
            wanted = {"memory", "cpu"} & set(controllers.split(","))
            assert path.endswith("/sub") == bool(wanted), text
        assert "unknown controller" in running.exec("--cgroup", "nosuch:sub", "--", "true").errors
        assert "no such file" in running.exec("--cgroup", "cpu:none", "--", "true").errors
    finally:
        for controller in ("memory", "cpu"):
            (running.cgroup(controller) / "sub").rmdir()


@pytest.mark.parametrize("value", ["..", "../x", "a/../../b"])
def test_sub_cgroups_are_below_the_containers(running: Box, value: str) -> None:
    answer = running.exec("--cgroup", value, "--", "true")
    assert answer.code == 255
    assert "sub cgroup path" in answer.errors


@OURS_ONLY  # runc 1.1 looks for such cgroups
@pytest.mark.parametrize("values", [("a", "b"), ("cpu:a", "b"), ("cpu:a", "cpu:b"), (":a",), ("cpu,:a",)])
def test_sub_cgroups_that_are_ambiguous(running: Box, values: tuple[str, ...]) -> None:
    options = [word for value in values for word in ("--cgroup", value)]
    assert "invalid --cgroup argument" in running.exec(*options, "--", "true").errors


def test_many_at_once(running: Box) -> None:
    command = [*running.runtime.command, "exec", running.id, "sh", "-c", "echo $$"]
    started = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    results = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 8, results
    assert len({out for out, _ in results}) == 8


def test_the_limits_of_the_container_hold(box: Box) -> None:
    box.spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    box.start()
    assert output(box, "--", "sh", "-c", "ulimit -Sn; ulimit -Hn") == "100\n200\n"


def test_the_pid_file_of_one_that_cannot_be_written(running: Box, place: Path) -> None:
    answer = running.exec("--detach", "--pid-file", str(place / "none" / "pid"), "--", "sleep", "1000")
    assert answer.code == 255
    init = running.state()["pid"]
    while json.loads(running.runtime("ps", "-f", "json", running.id)) != [init]:  # it is killed
        pass
