"""Create, Start, State, Wait, Delete over the task API, and the events that they send."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from shimd.api.containerd import task_v3_pb2 as api
from tests.daemon.boxes import MakeBox, refused, shell
from tests.support.client import Client
from tests.support.requires import requires
from tests.support.specs import containerd_default


def code_of(call: Any) -> str:
    """The name of a finished call's status."""
    error = call.exception()
    assert error is None or isinstance(error, grpc.RpcError)
    return str(error.code().name) if error else "OK"


def test_whole_life(box: MakeBox) -> None:
    b = box(*shell("exit 7"))
    pid = b.make()
    state = b.state()
    assert (state.pid, b.status(), state.bundle) == (pid, "CREATED", str(b.bundle))
    assert not state.HasField("exited_at")
    assert b.start() == pid
    assert b.wait() == 7
    state = b.state()
    assert (b.status(), state.exit_status, state.HasField("exited_at")) == ("STOPPED", 7, True)
    deleted = b.delete()
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    assert deleted.exited_at.ToNanoseconds() == state.exited_at.ToNanoseconds()
    with refused("NOT_FOUND"):
        b.state()


def test_events_of_a_whole_life(box: MakeBox) -> None:
    b = box("true")
    pid = b.make()
    b.start()
    b.wait()
    b.delete()
    events = b.events()
    assert [topic for topic, _ in events] == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert {message.container_id for _, message in events} == {b.id}
    assert {message.pid for _, message in events} == {pid}
    assert events[0][1].bundle == str(b.bundle)
    assert events[2][1].id == b.id
    assert events[2][1].exited_at == events[3][1].exited_at


def test_start_event_precedes_exit_event(box: MakeBox) -> None:
    """Also when the program is gone before anybody could look."""
    for _ in range(10):
        b = box("true")
        b.make()
        b.start()
        b.wait()
        topics = b.topics()
        assert topics.index("/tasks/start") < topics.index("/tasks/exit")
        b.delete()


def test_running_until_killed(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    assert b.status() == "RUNNING"
    waiting = b.waiting()
    b.kill(signal.SIGKILL)
    assert waiting.result().exit_status == 137
    assert b.wait() == 137


def test_process_is_really_there_and_then_gone(box: MakeBox) -> None:
    b = box("sleep", "1000")
    pid = b.make()
    b.start()
    with open(f"/proc/{pid}/comm") as file:
        assert file.read() == "sleep\n"
    b.kill()
    b.wait()
    b.delete()
    assert not os.path.exists(f"/proc/{pid}")


def test_delete_of_a_created_container_ends_it(box: MakeBox) -> None:
    b = box("true")
    b.make()
    assert b.delete().exit_status == 137
    assert b.topics() == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


def test_kill_of_a_created_container(box: MakeBox) -> None:
    b = box("true")
    b.make()
    b.kill()
    assert b.wait() == 137
    assert b.status() == "STOPPED"
    with refused("FAILED_PRECONDITION"):
        b.start()
    b.delete()


def test_delete_of_a_running_container_is_refused(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    with refused("FAILED_PRECONDITION", "cannot delete a running"):
        b.delete()
    assert b.status() == "RUNNING"


def test_second_start_is_refused(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    with refused("FAILED_PRECONDITION", "cannot start a running"):
        b.start()


def test_of_concurrent_starts_one_wins(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    calls = [b.task.Start.future(api.StartRequest(id=b.id)) for _ in range(8)]
    codes = sorted(map(code_of, calls))
    assert codes == ["FAILED_PRECONDITION"] * 7 + ["OK"]
    assert b.topics().count("/tasks/start") == 1


def test_of_concurrent_deletes_one_wins(box: MakeBox) -> None:
    b = box("true")
    b.make()
    b.start()
    b.wait()
    calls = [b.task.Delete.future(api.DeleteRequest(id=b.id)) for _ in range(8)]
    codes = sorted(map(code_of, calls))
    assert codes == ["NOT_FOUND"] * 7 + ["OK"]
    assert b.topics().count("/tasks/delete") == 1


def test_second_create_is_refused_and_changes_nothing(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    with refused("ALREADY_EXISTS"):
        b.make()
    assert b.status() == "CREATED"
    assert b.topics() == ["/tasks/create"]


def test_of_concurrent_creates_one_wins(box: MakeBox) -> None:
    b = box("true")
    request = api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))
    calls = [b.task.Create.future(request) for _ in range(8)]
    codes = sorted(map(code_of, calls))
    assert codes == ["ALREADY_EXISTS"] * 7 + ["OK"]


def test_id_can_be_used_again_after_delete(box: MakeBox) -> None:
    b = box(*shell("exit 4"))
    for _ in range(3):
        b.make()
        b.start()
        assert b.wait() == 4
        b.delete()


def test_same_id_in_two_namespaces(box: MakeBox, daemon: object, client: Client) -> None:
    b = box("sleep", "1000")
    b.make()
    with daemon.client(namespace=f"{client.namespace}-other") as other:  # type: ignore[attr-defined]
        with refused("NOT_FOUND"):
            other.task.State(api.StateRequest(id=b.id))
        assert other.task.Create(api.CreateTaskRequest(id=b.id, bundle=str(b.bundle))).pid != b.state().pid
        other.task.Delete(api.DeleteRequest(id=b.id))
    assert b.status() == "CREATED"


def test_missing_program_fails_create_with_its_name(box: MakeBox) -> None:
    b = box("/no/such/program")
    with refused("UNKNOWN", "/no/such/program"):
        b.make()
    assert b.topics() == []
    with refused("NOT_FOUND"):
        b.state()


def test_malformed_config_is_refused_with_all_its_problems(box: MakeBox) -> None:
    b = box("true")
    (b.bundle / "config.json").write_text('{"ociVersion": "1.0.2", "process": {"cwd": 7, "args": "x"}}')
    with refused("INVALID_ARGUMENT", "/process/cwd"):
        b.make()
    with refused("INVALID_ARGUMENT", "/process/args"):
        b.make()


def test_missing_bundle_is_refused(box: MakeBox) -> None:
    b = box("true")
    b.bundle = Path("/nowhere")
    with refused("INVALID_ARGUMENT", "/nowhere/config.json"):
        b.make()


def test_relative_bundle_is_refused(box: MakeBox) -> None:
    b = box("true")
    b.bundle = Path("bundle")
    with refused("INVALID_ARGUMENT", "not an absolute path"):
        b.make()


def test_wait_of_several_callers(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    waiting = [b.waiting() for _ in range(5)]
    b.start()
    b.kill(signal.SIGTERM)  # the first process of a pid namespace has no default action for it
    b.kill(signal.SIGKILL)
    assert {call.result().exit_status for call in waiting} == {137}


def test_wait_that_is_given_up_does_no_harm(box: MakeBox) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    waiting = b.waiting()
    waiting.cancel()
    b.kill()
    assert b.wait() == 137


def test_containerd_default_config(box: MakeBox) -> None:
    b = box(spec=containerd_default(*shell("exit 5")))
    b.make()
    b.start()
    assert b.wait() == 5
    b.delete()


def test_version_2_of_the_service_is_the_same(box: MakeBox, client: Client) -> None:
    b = box(*shell("exit 3"))
    b.task = client.task_v2
    b.make()
    b.start()
    assert b.wait() == 3
    assert b.status() == "STOPPED"
    b.delete()


def test_rootfs_mounts_of_create(box: MakeBox, busybox: Path, place: Path) -> None:
    for name in ("upper", "work"):
        (place / name).mkdir()
    b = box(*shell("echo found > /written"))
    config = (b.bundle / "config.json").read_text().replace(str(busybox), "rootfs")
    (b.bundle / "config.json").write_text(config)
    options = [f"lowerdir={busybox}", f"upperdir={place}/upper", f"workdir={place}/work"]
    spec = config.replace('"readonly": true', '"readonly": false')
    (b.bundle / "config.json").write_text(spec)
    b.make(rootfs=[{"type": "overlay", "source": "overlay", "options": options}])
    b.start()
    assert b.wait() == 0
    assert os.path.ismount(b.bundle / "rootfs")
    b.delete()
    assert not os.path.ismount(b.bundle / "rootfs")
    assert (place / "upper/written").read_text() == "found\n"
    assert b.events()[0][1].rootfs[0].type == "overlay"


@requires("userns", "overlay")
@pytest.mark.parametrize("kind", ["overlay", "bind"])
def test_rootfs_with_mapped_ids(box: MakeBox, busybox: Path, place: Path, kind: str) -> None:
    """As containerd asks for pods with a user namespace: the layers belong to the node's users."""
    b = box(*shell("test $(stat -c %u:%g /bin/busybox) = 0:0"))
    spec = json.loads((b.bundle / "config.json").read_text())
    spec["root"] = {"path": "rootfs"}
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    (b.bundle / "config.json").write_text(json.dumps(spec))
    maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"]
    (place / "lower").mkdir()
    options = {"overlay": [f"lowerdir={busybox}:{place}/lower"], "bind": ["rbind", "ro"]}[kind]
    b.make(rootfs=[{"type": kind, "source": str(busybox), "options": [*options, *maps]}])
    b.start()
    assert b.wait() == 0
    b.delete()
    assert sorted(os.listdir(b.bundle)) == ["config.json", "rootfs"]


@requires("userns")
def test_rootfs_where_root_of_the_user_namespace_must_not_go(box: MakeBox, busybox: Path, place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    busybox.rename(closed / "rootfs")
    b = box(*shell("test -x /bin/busybox && ! test -e /tmp/outside"))
    spec = json.loads((b.bundle / "config.json").read_text())
    spec["root"]["path"] = str(closed / "rootfs")
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    (b.bundle / "config.json").write_text(json.dumps(spec))
    b.make()
    b.start()
    assert b.wait() == 0


def test_failed_create_unmounts_the_rootfs(box: MakeBox, busybox: Path) -> None:
    b = box("/no/such/program")
    config = (b.bundle / "config.json").read_text().replace(str(busybox), "rootfs")
    (b.bundle / "config.json").write_text(config)
    with refused("UNKNOWN"):
        b.make(rootfs=[{"type": "bind", "source": str(busybox), "options": ["rbind", "ro"]}])
    assert not os.path.ismount(b.bundle / "rootfs")
