"""The command line itself: forms of options, help, what is said where, exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.container.boxes import IS_OURS, OURS_ONLY, Box, Runtime
from tests.support import wait

TEXT = re.compile(r'time="[^"]+" level=(\w+) msg=("(?:[^"\\]|\\.)*"|\S+)')
VERBS = (
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
)


@pytest.mark.parametrize("dash", ["-", "--"])
def test_long_options_have_one_dash_or_two(box: Box, dash: str) -> None:
    box.write()
    command = [box.runtime.command[0], f"{dash}root", str(box.runtime.root)]
    made = box.runtime.run("create", f"{dash}bundle={box.bundle}", f"{dash}no-pivot=false", box.id, command=command)
    assert made.code == 0, made
    assert box.status() == "created"
    assert box.runtime.run("delete", f"{dash}force", box.id, command=command).code == 0


def test_options_may_follow_the_id(box: Box) -> None:
    box.write()
    box.runtime("create", box.id, "--bundle", str(box.bundle))
    box.runtime("delete", box.id, "--force")


@OURS_ONLY  # runc 1.1 takes it for an option
def test_what_follows_two_dashes_is_no_option(runtime: Runtime) -> None:
    assert "container does not exist: --force" in runtime.fails("state", "--", "--force")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_verb_has_help(runtime: Runtime, verb: str, option: str) -> None:
    output = runtime(verb, option)
    program = Path(runtime.command[0]).name
    assert output.startswith(f"NAME:\n   {program} {verb} - ")
    assert f"USAGE:\n   {program} {verb}" in output


def test_help_of_the_program_names_all_verbs(runtime: Runtime) -> None:
    for arguments in ((), ("--help",), ("-h",), ("help",)):
        output = runtime(*arguments)
        assert output.splitlines()[1].endswith("- Open Container Initiative runtime")
        for verb in VERBS:
            assert re.search(rf"^   {verb}\b", output, re.MULTILINE), verb


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_the_version_is_what_engines_parse(runtime: Runtime, option: str) -> None:
    lines = runtime(option).splitlines()
    assert re.fullmatch(r"\w+ version \d+\.\d+\.\d+\S*", lines[0])
    assert any(re.fullmatch(r"spec: \d+\.\d+\.\d+\S*", line) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nosuch",), "flag provided but not defined: -nosuch"),
        (("create", "--nosuch", "x"), "flag provided but not defined: -nosuch"),
        (("state",), "requires exactly 1 argument(s)"),
        (("state", "a", "b"), "requires exactly 1 argument(s)"),
        (("kill", "a", "b", "c"), "requires a maximum of 2 argument(s)"),
        (("exec",), "requires a minimum of 1 argument(s)"),
        (("exec", "--nosuch", "x"), "flag provided but not defined: -nosuch"),
        (("kill",), "requires a minimum of 1 argument(s)"),
        (("create", "--bundle"), "flag needs an argument: "),
        (("create", "--preserve-fds", "x", "y"), "invalid value"),
        (("create", "--no-pivot=perhaps", "y"), "invalid boolean value"),
    ],
)
def test_usage_that_is_wrong(runtime: Runtime, arguments: tuple[str, ...], message: str) -> None:
    answer = runtime.run(*arguments)
    assert answer.code == 1
    assert message in answer.errors.replace('\\"', '"')
    assert answer.output.startswith("Incorrect Usage")
    assert "USAGE:" in answer.output


def test_an_unknown_verb(runtime: Runtime) -> None:
    answer = runtime.run("nosuch", "x")
    assert answer.code != 0
    assert "No help topic for 'nosuch'" in answer.errors + answer.output


def test_a_failure_is_one_line(runtime: Runtime) -> None:
    answer = runtime.run("state", "nosuch")
    assert (answer.code, answer.output) == (1, "")
    found = TEXT.fullmatch(answer.errors.rstrip("\n"))
    assert found is not None
    assert found[1] == "error"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--bundle", "/nonexistent", "some"),
        ("create", "--bundle", "/nonexistent", "some"),
        ("exec", "nobody", "true"),
        ("run", "--help"),
        ("run",),
        ("state", "run"),
        ("kill", "create"),
    ],
    ids=" ".join,
)
def test_a_call_that_makes_no_process_leaves_none(runtime: Runtime, arguments: tuple[str, ...]) -> None:
    """Not even one that would be the caller's to reap."""
    known = wait.children()
    runtime.run(*arguments)
    assert wait.children() == known


def test_a_log_has_the_failure_and_so_has_stderr(runtime: Runtime, place: Path) -> None:
    log = place / "log"
    answer = runtime.run("--log", str(log), "state", "nosuch")
    assert answer.code == 1
    assert answer.errors.startswith("container does not exist")
    assert answer.errors.count("\n") == 1
    found = TEXT.fullmatch(log.read_text().rstrip("\n"))
    assert found is not None
    assert found[1] == "error"


def test_a_log_in_json_ends_with_the_one_error(box: Box, place: Path) -> None:
    log = place / "log"
    box.spec["process"]["args"] = ['/no\n"such" ä']
    box.write()
    options = ("--log", str(log), "--log-format", "json", "--debug")
    answer = box.runtime.run(*options, "create", "--bundle", str(box.bundle), box.id)
    assert answer.code == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"level", "msg", "time"} <= set(line) for line in lines)
    assert [line["level"] for line in lines].count("error") == 1
    assert lines[-1]["level"] == "error"
    assert '/no\n"such" ä' in lines[-1]["msg"] or "/no" in lines[-1]["msg"]
    assert lines[0]["level"] == "debug" or not IS_OURS


def test_a_log_is_appended_to(runtime: Runtime, place: Path) -> None:
    log = place / "log"
    log.write_text("before\n")
    runtime.run("--log", str(log), "state", "nosuch")
    runtime.run("--log", str(log), "state", "nosuch")
    assert log.read_text().startswith("before\n")
    assert log.read_text().count("\n") == 3


def test_a_success_says_nothing(box: Box, place: Path) -> None:
    log = place / "log"
    box.write()
    answer = box.runtime.run("--log", str(log), "create", "--bundle", str(box.bundle), box.id)
    assert (answer.code, answer.output, answer.errors) == (0, "", "")
    assert log.read_text() == ""


def test_a_log_that_cannot_be_opened(runtime: Runtime, place: Path) -> None:
    assert "no such file or directory" in runtime.fails("--log", str(place / "none" / "log"), "state", "x").lower()


def test_an_unknown_format_of_the_log(runtime: Runtime) -> None:
    assert "invalid log-format: yaml" in runtime.fails("--log-format", "yaml", "state", "x")


@OURS_ONLY  # runc 1.1 takes it
@pytest.mark.parametrize("root", ["/", "", "/../..", "//"])
def test_the_root_is_not_the_root_of_all(runtime: Runtime, root: str) -> None:
    answer = runtime.run("state", "x", command=[runtime.command[0], "--root", root], cwd=Path("/"))
    assert answer.code == 1
    assert "should not be set to /" in answer.errors


def test_a_relative_root(box: Box) -> None:
    box.write()
    root = box.runtime.root
    command = [box.runtime.command[0], "--root", root.name]
    made = box.runtime.run("create", "--bundle", str(box.bundle), box.id, command=command, cwd=root.parent)
    assert made.code == 0
    assert box.status() == "created"


def test_a_root_that_is_not_there_yet(box: Box, place: Path) -> None:
    box.write()
    root = place / "a" / "b"
    command = [box.runtime.command[0], "--root", str(root)]
    assert box.runtime.run("create", "--bundle", str(box.bundle), box.id, command=command).code == 0
    assert os.listdir(root) == [box.id]
    assert box.runtime.run("delete", "--force", box.id, command=command).code == 0


@pytest.mark.parametrize("value", ["perhaps", "yes"])
def test_rootless_is_true_false_or_auto(box: Box, value: str) -> None:
    box.write()
    box.runtime.fails("--rootless", value, "create", "--bundle", str(box.bundle), box.id)


@OURS_ONLY
def test_standard_output_that_is_full(box: Box) -> None:
    box.create()
    command = ["sh", "-c", f"{' '.join(box.runtime.command)} state {box.id} >/dev/full"]
    answer = box.runtime.run(command=command)
    assert answer.code == 1
    assert "No space left" in answer.errors


READ_ONLY = r"""
for place in $(sed -n 's/^[^ ]* \([^ ]*\) cgroup2\{0,1\} .*/\1/p' /proc/self/mounts); do
    mount -o remount,bind,ro "$place"
done
exec "$@"
"""


def test_rootless_lets_a_container_run_where_cgroups_are_refused(box: Box) -> None:
    del box.spec["linux"]["cgroupsPath"]
    del box.spec["linux"]["resources"]
    box.shell("echo without")
    box.write()
    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *box.runtime.command]
    arguments = ("run", "--bundle", str(box.bundle), box.id)
    assert box.runtime.run(*arguments, command=[*command, "--rootless=false"]).code == 1
    assert os.listdir(box.runtime.root) == []
    answer = box.runtime.run(*arguments, command=[*command, "--rootless=true"])
    assert (answer.code, answer.output) == (0, "without\n"), answer
