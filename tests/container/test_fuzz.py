"""Whatever the command line and config.json are: a failure is one clear line and an exit code, and leaves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.container.boxes import OURS_ONLY, Answer, Box, Runtime

pytestmark = OURS_ONLY

VERBS = (
    "checkpoint", "create", "delete", "events", "exec", "features", "kill", "list", "pause", "plan", "ps", "restore",
    "resume", "run", "spec", "start", "state", "update", "help", "nosuch",
)  # fmt: skip
OPTIONS = (
    "bundle", "b", "console-socket", "pidfd-socket", "pid-file", "no-pivot", "no-new-keyring", "preserve-fds",
    "detach", "d", "keep", "no-subreaper", "cwd", "env", "e", "tty", "t", "user", "u", "additional-gids", "g",
    "process", "p", "process-label", "apparmor", "no-new-privs", "cap", "c", "cgroup", "ignore-paused", "force", "f",
    "all", "a", "format", "quiet", "q", "stats", "interval", "resources", "r", "memory", "pids-limit", "cpu-quota",
    "image-path", "work-path", "lsm-profile", "manage-cgroups-mode", "rootless", "debug", "log-format", "h", "help",
    "systemd-cgroup", "version",
)  # fmt: skip

# The kernel takes no null byte in an argument.
texts = st.one_of(
    st.text(st.characters(codec=None, exclude_characters="\0"), max_size=12),
    st.sampled_from(
        ["", ".", "..", "/", "-", "--", "-1", "0", "1", "99999999999999999999", "json", "x", "true", "a:b"]
    ),
)
options = st.builds(
    lambda dashes, name, value: f"{dashes}{name}" if value is None else f"{dashes}{name}={value}",
    st.sampled_from(["-", "--"]),
    st.sampled_from(OPTIONS),
    st.none() | texts,
)
command_lines = st.builds(
    lambda front, verb, rest: [*front, verb, *rest],
    st.lists(options, max_size=1),
    st.sampled_from(VERBS),
    st.lists(st.one_of(options, texts), max_size=5),
)

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 0.5, float("nan")]),
        st.text(st.characters(codec=None), max_size=10),
        st.sampled_from(["", "/", "/proc", "..", "a/b", "/bin/true", "PATH=", "9" * 5000]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_clear(answer: Answer, *codes: int) -> None:
    assert "Traceback" not in answer.errors + answer.output, answer
    assert "internal error" not in answer.errors, answer
    assert answer.code in (0, *codes), answer
    lines = [line for line in answer.errors.splitlines() if "level=error" in line]
    assert len(lines) == (answer.code != 0), answer


@given(command_lines)
@quick
def test_command_lines(runtime: Runtime, place: Path, words: list[str]) -> None:
    words = [os.fsdecode(word.encode("utf-8", "surrogatepass")) for word in words]
    # Where no container can be made, whatever is named.
    answer = runtime.run(*words, cwd=place)
    is_clear(answer, 1, 255)
    assert os.listdir(runtime.root) == []
    (place / "config.json").unlink(missing_ok=True)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [place for key, child in items for place in [(node, key), *places(child)]]


def changed(document: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for number, value in changes:
        if options := places(copy):
            container, key = options[number % len(options)]
            container[key] = value
    return copy


changes = st.lists(st.tuples(st.integers(0), values), min_size=1, max_size=3)


@given(changes)
@quick
def test_configurations(box: Box, wanted: list[tuple[int, Any]]) -> None:
    """As far as to the plan: what is left of it may want to change anything on this machine."""
    box.bundle.joinpath("config.json").write_text(json.dumps(changed(box.spec, wanted)))
    is_clear(box.runtime.run("plan", "--bundle", str(box.bundle), box.id), 1)


@given(changes)
@settings(quick, max_examples=25)
def test_processes(box: Box, wanted: list[tuple[int, Any]]) -> None:
    """Carried out, since a process can do no harm."""
    spec = dict(box.spec)
    spec["process"] = changed({**spec["process"], "args": ["true"], "rlimits": [], "terminal": False}, wanted)
    spec["process"]["args"] = spec["process"].get("args") or ["true"]
    box.bundle.joinpath("config.json").write_text(json.dumps(spec))
    answer = box.runtime.run("run", "--bundle", str(box.bundle), box.id)
    assert "Traceback" not in answer.errors, answer
    assert "internal error" not in answer.errors, answer
    assert answer.code >= 0
    assert os.listdir(box.runtime.root) == []


@given(st.binary(max_size=100))
@settings(quick, max_examples=15)
def test_bytes(box: Box, data: bytes) -> None:
    box.bundle.joinpath("config.json").write_bytes(data)
    is_clear(box.runtime.run("create", "--bundle", str(box.bundle), box.id), 1)
    assert os.listdir(box.runtime.root) == []


NUMBERS = ("0", "-1", "1", "512m", "1.5g", "9" * 30, "9" * 5000, "1e9", "0x10", "", "max", "٣", "5s", "1h", "-5s")
ON_CONTAINERS = {
    "exec": ("cwd", "env", "user", "additional-gids", "process", "process-label", "apparmor", "cap", "preserve-fds",
             "cgroup", "console-socket", "pidfd-socket"),
    "update": ("memory", "memory-swap", "memory-reservation", "cpu-period", "cpu-quota", "cpu-share", "cpuset-cpus",
               "cpu-idle", "cpu-burst", "blkio-weight", "pids-limit", "l3-cache-schema", "resources"),
    "ps": ("format",),
    "kill": (),
    "events": ("interval",),
    "checkpoint": ("image-path", "page-server", "manage-cgroups-mode", "empty-ns", "status-fd"),
}  # fmt: skip


@given(st.data())
@settings(quick, max_examples=50)
def test_a_container_that_is_there(box: Box, data: st.DataObject) -> None:
    if not (box.runtime.root / box.id).exists():
        box.start()
    verb = data.draw(st.sampled_from(sorted(ON_CONTAINERS)))
    words = [
        f"--{option}={data.draw(st.sampled_from(NUMBERS) | texts)}"
        for option in data.draw(st.lists(st.sampled_from(ON_CONTAINERS[verb] or ("all",)), max_size=2))
    ]
    words = [os.fsdecode(word.encode("utf-8", "surrogatepass")) for word in words]
    rest = {"exec": ["true"], "kill": ["0"], "events": []}.get(verb, [])
    answer = box.runtime.run(verb, *words, *(["--stats"] if verb == "events" else []), box.id, *rest, cwd=box.bundle)
    is_clear(answer, 1, 255)
    assert box.status() == "running"
