"""state.json and the directory that holds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.errors import AlreadyExists, InvalidArgument, NotFound, RuntimeFailure
from shimd.runtime import state as s

STATE = s.ContainerState(
    id="c1",
    namespace="default",
    bundle="/bundle",
    rootfs="/bundle/rootfs",
    created="2024-05-06T07:08:09.000000001Z",
    pid=4711,
    start_time=815,
    owner=0,
    config_hash="ab" * 32,
    annotations={"a": "b"},
    cgroup={"mode": "v2"},
    cgroup_paths={"": "/sys/fs/cgroup/c1"},
    namespace_paths={"NEWPID": "/proc/4711/ns/pid"},
    own_pid_namespace=True,
    rootfs_mounts=("", "sub"),
    terminal=False,
    stdio=("", "/out", "/err"),
    changed_resources={},
    intel_rdt_path="/sys/fs/resctrl/c1",
    intel_rdt_owned=True,
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[s.StateDir]:
    held = s.StateDir.reserve(str(tmp_path), "default", "c1")
    yield held
    held.close()


def test_a_state_survives_being_written_and_read() -> None:
    assert s.loads(s.dumps(STATE)) == STATE


def test_the_keys_are_those_of_runc_where_it_has_them() -> None:
    document = json.loads(s.dumps(STATE))
    assert document["schema"] == s.SCHEMA
    assert document["init_process_pid"] == 4711
    assert document["init_process_start"] == 815
    assert {"id", "created", "cgroup_paths", "namespace_paths", "intel_rdt_path"} <= document.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema", 2), ("id", 1), ("init_process_pid", "1"), ("init_process_pid", True), ("stdio", ["a"]), ("cgroup", [])],
)
def test_a_wrong_value_is_refused(key: str, value: object) -> None:
    document = json.loads(s.dumps(STATE)) | {key: value}
    with pytest.raises(ValueError, match=key):
        s.loads(json.dumps(document).encode())


def test_a_missing_key_is_refused() -> None:
    document = json.loads(s.dumps(STATE))
    del document["cgroup"]
    with pytest.raises(ValueError, match="cgroup is missing"):
        s.loads(json.dumps(document).encode())


def test_the_file_is_private_and_replaced_by_rename(directory: s.StateDir) -> None:
    directory.save(STATE)
    first = os.stat(directory.path + "/state.json")
    directory.save(STATE._replace(pid=4712))
    second = os.stat(directory.path + "/state.json")
    assert first.st_mode & 0o7777 == 0o600
    assert first.st_ino != second.st_ino
    assert os.listdir(directory.path) == ["state.json"]
    assert directory.load().pid == 4712


def test_a_damaged_file_is_reported_with_its_path(directory: s.StateDir) -> None:
    directory.write(s.STATE_FILE, b"{")
    with pytest.raises(RuntimeFailure, match=r"state\.json"):
        directory.load()


def test_a_directory_without_a_state_file_is_no_container(directory: s.StateDir) -> None:
    with pytest.raises(NotFound, match="container does not exist: c1"):
        directory.load()


def test_the_id_is_reserved_once(tmp_path: Path, directory: s.StateDir) -> None:
    with pytest.raises(AlreadyExists, match="container with given ID already exists: c1"):
        s.StateDir.reserve(str(tmp_path), "default", "c1")


def test_reserving_makes_private_parents(tmp_path: Path) -> None:
    root = tmp_path / "a"
    s.StateDir.reserve(str(root), "ns", "x").close()
    assert (root / "ns").stat().st_mode & 0o7777 == 0o700
    assert (root / "ns" / "x").stat().st_mode & 0o7777 == 0o711


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="container does not exist: nope"):
        s.StateDir.open(str(tmp_path), "default", "nope")


def test_removal_takes_all_files_and_tolerates_absence(directory: s.StateDir) -> None:
    directory.save(STATE)
    directory.write("one.exit.json", b"{}")
    directory.remove()
    assert not os.path.exists(directory.path)
    directory.remove()


@pytest.mark.parametrize("value", ["a", "a.b-c_d+e", "0" * 200])
def test_ids_that_are_plain_names_pass(value: str) -> None:
    s.check_id("container", value)


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "a\0", "a b", "ä", "a\n", "0" * 201])
def test_other_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid container ID format"):
        s.check_id("container", value)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 11)
    assert s.read_file(str(tmp_path / "f"), 11) == b"x" * 11
    with pytest.raises(InvalidArgument, match="larger than 10 bytes"):
        s.read_file(str(tmp_path / "f"), 10)


def test_a_fifo_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    assert s.read_file(str(tmp_path / "f"), 10) == b""


def test_a_timestamp_has_nanoseconds_in_utc() -> None:
    assert s.timestamp(1_700_000_000_000_000_042) == "2023-11-14T22:13:20.000000042Z"
