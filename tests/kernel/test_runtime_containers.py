"""Real containers through the runtime: made by the test process itself, and by a keeper."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, InvalidSpec, NotFound, RuntimeFailure
from shimd.linux.mount import is_mount_point
from shimd.oci.read import read_resources
from shimd.runtime.container import ExecOptions
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.rootfs import RootfsMount
from shimd.runtime.state import StateDir
from shimd.runtime.status import Status
from tests.kernel.runtime_rig import Rig
from tests.support import wait
from tests.support.bundle import make_bundle
from tests.support.requires import requires
from tests.support.specs import containerd_default, runc_default


def shell(script: str, **process: Any) -> dict[str, Any]:
    spec = runc_default("/bin/sh", "-c", script, rootfs="../rootfs")
    spec["process"].update(process)
    return spec


SLEEP = ("/bin/sleep", "1000")


def sleeper() -> dict[str, Any]:
    return runc_default(*SLEEP, rootfs="../rootfs")


# ---- lives -----------------------------------------------------------------------------------------------------------


def test_a_whole_life(rig: Rig) -> None:
    assert rig.run(shell("echo hello; echo $$; exit 7")) == (7, "hello\n1\n")
    assert not rig.state_dir().exists()


def test_without_a_gate_the_program_runs_when_create_returns(rig: Rig) -> None:
    assert rig.run(shell("echo now"), gate=False) == (0, "now\n")


def test_containerds_default_configuration(rig: Rig) -> None:
    spec = containerd_default(
        "/bin/sh", "-c", "grep -c . /proc/self/cgroup && hostname", rootfs="../rootfs", container_id=rig.id
    )
    code, text = rig.run(spec)
    assert code == 0, text


def test_the_states_of_a_life(rig: Rig) -> None:
    container = rig.create(sleeper())
    assert rig.runtime.status(container) is Status.CREATED
    assert (rig.state_dir() / "start.sock").is_socket()
    assert (rig.state_dir() / "state.json").stat().st_mode & 0o777 == 0o600
    rig.runtime.start(container)
    assert rig.runtime.status(container) is Status.RUNNING
    rig.runtime.pause(container)
    assert rig.runtime.status(container) is Status.PAUSED
    rig.runtime.resume(container)
    assert rig.runtime.status(container) is Status.RUNNING
    rig.runtime.kill(container, signal.SIGKILL)
    assert rig.wait(container) == 137
    assert rig.runtime.status(container) is Status.STOPPED
    assert rig.runtime.state_document(container)["pid"] == 0
    rig.runtime.delete(container)
    with pytest.raises(NotFound):
        rig.runtime.load(rig.id)


def test_a_container_killed_while_created_is_stopped(rig: Rig) -> None:
    container = rig.create(sleeper())
    rig.runtime.kill(container, signal.SIGKILL)
    assert rig.wait(container) == 137
    assert rig.runtime.status(container) is Status.STOPPED
    with pytest.raises(FailedPrecondition, match="cannot start a container that has stopped"):
        rig.runtime.start(container)
    rig.runtime.delete(container)


def test_a_created_container_is_deleted_without_force(rig: Rig) -> None:
    container = rig.create(sleeper())
    pid = container.pid
    rig.runtime.delete(container)
    if isinstance(rig.launcher, DirectLauncher):
        assert rig.launcher.wait(rig.id, pid).code == 137


def test_a_running_container_is_deleted_only_by_force(rig: Rig) -> None:
    container = rig.create(sleeper(), gate=False)
    pid = container.pid
    with pytest.raises(FailedPrecondition, match=f"cannot delete container {rig.id} that is not stopped: running"):
        rig.runtime.delete(container)
    rig.runtime.delete(container, force=True)
    if isinstance(rig.launcher, DirectLauncher):
        rig.launcher.wait(rig.id, pid)


def test_the_same_id_again_after_a_delete(rig: Rig) -> None:
    for number in range(3):
        assert rig.run(shell(f"echo {number}")) == (0, f"{number}\n")


def test_a_duplicate_id_is_refused_before_any_side_effect(rig: Rig) -> None:
    container = rig.create(sleeper())
    with pytest.raises(AlreadyExists):
        rig.create(shell("true"), rootfs=(RootfsMount("tmpfs", "tmpfs", "", ()),))
    assert rig.runtime.status(container) is Status.CREATED
    rig.end(container)


def test_a_second_start_is_refused(rig: Rig) -> None:
    container = rig.create(sleeper())
    rig.runtime.start(container)
    with pytest.raises(FailedPrecondition, match="cannot start an already running container"):
        rig.runtime.start(container)
    rig.end(container)


def test_of_two_starts_at_once_exactly_one_wins(rig: Rig) -> None:
    rig.create(sleeper()).close()
    outcomes: list[str] = []

    def start() -> None:
        with rig.runtime.load(rig.id) as container:
            together.wait()
            try:
                rig.runtime.start(container)
            except FailedPrecondition as error:
                outcomes.append(str(error))
            else:
                outcomes.append("won")

    together = threading.Barrier(3)
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("won") == 1
    assert {text for text in outcomes if text != "won"} == {"cannot start an already running container"}
    rig.end(rig.runtime.load(rig.id))


def test_a_container_is_loaded_from_disk_and_operated_on(rig: Rig) -> None:
    created = rig.create(sleeper())
    created.close()
    with rig.runtime.load(rig.id) as container:
        assert rig.runtime.status(container) is Status.CREATED
        rig.runtime.start(container)
    listing = rig.runtime.list()
    assert [entry.id for entry in listing.containers] == [rig.id]
    assert listing.problems == ()
    container = listing.containers[0]
    assert container.spec.process.args == SLEEP
    rig.end(container)
    assert rig.runtime.list().containers == ()


def test_a_pid_that_is_another_process_by_now_is_not_taken_for_init(direct: Rig) -> None:
    container = direct.create(sleeper())
    container.directory.save(container.state._replace(start_time=1))
    with direct.runtime.load(direct.id) as loaded:
        assert loaded.pidfd == -1
        assert direct.runtime.status(loaded) is Status.STOPPED
        with pytest.raises(NotFound, match="container not running"):
            direct.runtime.kill(loaded, signal.SIGKILL)
    direct.end(container)


def test_namespaces_keep_ids_apart(direct: Rig) -> None:
    spec = sleeper()
    make_bundle(direct.bundle, spec)
    spec["linux"]["cgroupsPath"] = f"/{direct.id}-other"
    first = direct.runtime.create(direct.id, str(direct.bundle), namespace="a")
    second = direct.runtime.create(direct.id, str(direct.bundle), namespace="b", config=json.dumps(spec).encode())
    assert direct.runtime.namespaces() == ("a", "b")
    for container in (first, second):
        pid = container.pid
        direct.runtime.delete(container)
        os.waitpid(pid, 0)


def test_a_stray_directory_is_no_container_and_can_be_removed(direct: Rig) -> None:
    direct.state_dir().mkdir(parents=True)
    assert direct.runtime.list() == ((), (), (direct.id,))
    direct.runtime.remove_stray(direct.id)
    assert not direct.state_dir().exists()
    with pytest.raises(NotFound):
        direct.runtime.remove_stray(direct.id)


def test_a_directory_in_use_is_not_removed_as_a_stray(direct: Rig) -> None:
    container = direct.create(sleeper())
    with pytest.raises(FailedPrecondition, match="exists"):
        direct.runtime.remove_stray(direct.id)
    (direct.state_dir() / "state.json").unlink()
    with StateDir.reserve(str(direct.place / "state"), "", "making") as making:
        with pytest.raises(FailedPrecondition, match="still being created"):
            direct.runtime.remove_stray("making")
        making.remove()
    container.directory.save(container.state)
    direct.end(container)


def test_a_container_whose_configuration_is_lost_can_be_deleted(direct: Rig) -> None:
    container = direct.create(sleeper(), gate=False)
    direct.runtime.kill(container, signal.SIGKILL)
    direct.wait(container)
    container.close()
    (direct.state_dir() / "config.json").write_text("{")
    problems = direct.runtime.delete(direct.runtime.load(direct.id))
    assert problems[0].startswith("poststop hooks are not run: config.json")
    assert not direct.state_dir().exists()


# ---- exec ------------------------------------------------------------------------------------------------------------


def test_exec_runs_in_the_container(rig: Rig) -> None:
    container = rig.create(sleeper(), gate=False)
    code, text = rig.output_of(container, "/bin/sh", "-c", "hostname; cat /proc/1/cmdline; exit 3")
    assert (code, text) == (3, "runc\n" + "\0".join(SLEEP) + "\0")
    assert rig.runtime.pids(container) == [container.pid]
    rig.end(container)


def test_exec_of_a_missing_program_leaves_the_container_running(rig: Rig) -> None:
    container = rig.create(sleeper(), gate=False)
    with pytest.raises(RuntimeFailure, match='exec: "nope": executable file not found in \\$PATH'):
        rig.exec(container, "nope")
    assert rig.output_of(container, "echo", "still here") == (0, "still here\n")
    rig.end(container)


def test_exec_in_a_created_container(rig: Rig) -> None:
    container = rig.create(sleeper())
    assert rig.output_of(container, "echo", "early") == (0, "early\n")
    rig.end(container)


def test_exec_is_refused_when_paused_or_stopped(direct: Rig) -> None:
    container = direct.create(sleeper(), gate=False)
    direct.runtime.pause(container)
    with pytest.raises(FailedPrecondition, match="cannot exec in a paused container"):
        direct.exec(container, "true")
    direct.runtime.resume(container)
    direct.runtime.kill(container, signal.SIGKILL)
    direct.wait(container)
    with pytest.raises(FailedPrecondition, match="cannot exec in a stopped container"):
        direct.exec(container, "true")
    direct.runtime.delete(container)


def test_exec_with_a_terminal(rig: Rig) -> None:
    container = rig.create(sleeper(), gate=False)
    process = rig.exec(
        container, "/bin/sh", "-c", "tty; stty size", terminal=True, consoleSize={"height": 30, "width": 99}
    )
    text = wait.read_until(process.console_fd, b"30 99")
    assert text.startswith(b"/dev/pts/0\r\n")
    os.close(process.console_fd)
    assert rig.wait_exec(container, process) in (0, 129)
    rig.end(container)


def test_an_exec_id_is_a_plain_name(direct: Rig) -> None:
    container = direct.create(sleeper(), gate=False)
    with pytest.raises(InvalidArgument, match="invalid exec ID format"):
        direct.exec(container, "true", name="../x")
    direct.end(container)


# ---- signals, limits -------------------------------------------------------------------------------------------------


def test_sigkill_reaches_a_paused_container(rig: Rig) -> None:
    container = rig.create(sleeper(), gate=False)
    rig.runtime.pause(container)
    rig.runtime.kill(container, signal.SIGKILL)
    assert rig.wait(container) == 137
    rig.runtime.delete(container)


def test_a_signal_to_everyone_reaches_execs(direct: Rig) -> None:
    container = direct.create(shell("trap : TERM; while :; do sleep 1000 & wait; done"), gate=False)
    process = direct.exec(container, *SLEEP)
    direct.runtime.kill(container, signal.SIGTERM, everyone=True)
    assert direct.wait_exec(container, process) == 143
    assert direct.runtime.status(container) is Status.RUNNING
    direct.end(container)


def test_sigkill_without_a_pid_namespace_of_its_own_ends_all(direct: Rig) -> None:
    spec = shell("sleep 1001 & exec sleep 1000")
    spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "pid"]
    container = direct.create(spec, gate=False)
    direct.output_of(container, "true")  # by now the shell has gone on
    direct.runtime.kill(container, signal.SIGKILL)
    assert direct.wait(container) == 137
    direct.runtime.delete(container)


def test_delete_ends_what_a_dead_init_has_left_running(direct: Rig) -> None:
    spec = shell("sleep 1001 & exit 0")
    spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "pid"]
    container = direct.create(spec, gate=False)
    assert direct.wait(container) == 0
    assert len(direct.runtime.pids(container)) == 1
    direct.runtime.delete(container)


@requires("cgroup:pids")
def test_update_changes_limits_and_writes_them_down(direct: Rig) -> None:
    container = direct.create(sleeper(), gate=False)
    direct.runtime.update(container, read_resources(b'{"pids": {"limit": 17}}'))
    assert direct.runtime.stats(container).pids.limit == 17
    with direct.runtime.load(direct.id) as loaded:
        assert loaded.resources.pids.limit == 17
        assert loaded.resources.devices == container.spec.linux.resources.devices
    direct.end(container)


# ---- what the process gets -------------------------------------------------------------------------------------------


def test_a_terminal_for_init(rig: Rig) -> None:
    spec = shell("tty; ls -l /dev/console; read line; echo got $line", terminal=True)
    container = rig.create(spec)
    console = container.take_console()
    rig.runtime.start(container)
    os.write(console, b"word\n")
    text = wait.read_until(console, b"got word")
    assert b"/dev/pts/0" in text or b"/dev/console" in text
    assert rig.wait(container) == 0
    os.close(console)
    rig.runtime.delete(container)


def test_rlimits_are_set_on_the_program(direct: Rig) -> None:
    spec = shell("ulimit -n; ulimit -Hn", rlimits=[{"type": "RLIMIT_NOFILE", "soft": 63, "hard": 64}])
    assert direct.run(spec) == (0, "63\n64\n")


def test_preserved_descriptors(direct: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept\n")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert direct.run(shell("cat <&3; ls /proc/self/fd | wc -l"), preserve_fds=(fd,)) == (0, "kept\n5\n")
    finally:
        os.close(fd)


@requires("userns")
def test_a_user_namespace_with_maps(rig: Rig) -> None:
    spec = shell("id -u; cat /proc/self/uid_map; touch /tmp/f")
    spec["root"]["readonly"] = False
    spec["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"].update(uidMappings=maps, gidMappings=maps)
    code, text = rig.run(spec)
    assert (code, text.split()) == (0, ["0", "0", "100000", "65536"])
    assert (rig.place / "rootfs/tmp/f").stat().st_uid == 100000


def test_a_joined_network_namespace(direct: Rig) -> None:
    spec = shell("readlink /proc/self/ns/net")
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = "/proc/self/ns/net"
    spec["mounts"] = [entry for entry in spec["mounts"] if entry["type"] != "sysfs"]
    assert direct.run(spec) == (0, os.readlink("/proc/self/ns/net") + "\n")


def test_a_namespace_path_of_the_wrong_type(direct: Rig) -> None:
    spec = sleeper()
    spec["linux"]["namespaces"][1]["path"] = "/proc/self/ns/uts"
    with pytest.raises(InvalidArgument, match="it is a uts namespace"):
        direct.create(spec)
    spec["linux"]["namespaces"][1]["path"] = "/dev/null"
    with pytest.raises(InvalidArgument, match="not a namespace"):
        direct.create(spec)


def test_the_rootfs_of_the_request(rig: Rig) -> None:
    upper, work = rig.place / "upper", rig.place / "work"
    upper.mkdir()
    work.mkdir()
    options = (f"lowerdir={rig.place}/rootfs", f"upperdir={upper}", f"workdir={work}")
    spec = shell("echo new > /file")
    spec["root"] = {"path": "rootfs"}
    assert rig.run(spec, rootfs=(RootfsMount("overlay", "overlay", "", options),)) == (0, "")
    assert (upper / "file").read_text() == "new\n"
    assert not (rig.place / "rootfs/file").exists()


# ---- hooks -----------------------------------------------------------------------------------------------------------


def hook(script: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"path": "/bin/sh", "args": ["sh", "-c", script], **fields}]


def test_hooks_run_in_their_order_with_their_state(rig: Rig) -> None:
    spec = shell("sleep 0")
    log = rig.place / "log"
    record = f"(echo $0; cat; echo) >> {log}"
    spec["hooks"] = {
        kind: [{"path": "/bin/sh", "args": [kind, "-c", record]}]
        for kind in ("prestart", "createRuntime", "poststart", "poststop")
    }
    for entries in spec["hooks"].values():
        entries[0]["args"] = ["sh", "-c", record, next(k for k, v in spec["hooks"].items() if v is entries)]
    container = rig.create(spec)
    pid = container.pid
    rig.runtime.start(container)
    rig.wait(container)
    rig.runtime.delete(container)
    lines = [line for line in log.read_text().splitlines() if line]
    assert lines[::2] == ["prestart", "createRuntime", "poststart", "poststop"]
    states = [json.loads(line) for line in lines[1::2]]
    assert [state["status"] for state in states] == ["creating", "creating", "running", "stopped"]
    assert [state.get("pid", 0) for state in states] == [pid, pid, pid, 0]
    assert {state["bundle"] for state in states} == {str(rig.bundle)}


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_undoes_the_container(direct: Rig, kind: str) -> None:
    spec = sleeper()
    log = direct.place / "log"
    spec["hooks"] = {kind: hook("echo no >&2; exit 1"), "poststop": hook(f"echo gone > {log}")}
    with pytest.raises(RuntimeFailure, match=f"error running {kind} hook #0.*no"):
        direct.create(spec)
    assert log.read_text() == "gone\n"
    assert not direct.state_dir().exists()


def test_a_hook_that_hangs_ends_by_its_time_limit(direct: Rig) -> None:
    spec = sleeper()
    spec["hooks"] = {"createRuntime": hook("sleep 1000", timeout=1)}
    with pytest.raises(RuntimeFailure, match="timed out after 1 s"):
        direct.create(spec)


def test_a_poststart_hook_that_fails_kills_the_container(direct: Rig) -> None:
    spec = sleeper()
    spec["hooks"] = {"poststart": hook("exit 1")}
    container = direct.create(spec)
    with pytest.raises(RuntimeFailure, match="error running poststart hook #0"):
        direct.runtime.start(container)
    assert direct.wait(container) == 137
    direct.runtime.delete(container)


def test_a_poststop_hook_that_fails_is_a_warning(direct: Rig) -> None:
    spec = shell("true")
    spec["hooks"] = {"poststop": hook("exit 1")}
    container = direct.create(spec, gate=False)
    direct.wait(container)
    problems = direct.runtime.delete(container)
    assert problems[0].startswith("error running poststop hook #0: /bin/sh: exit status 1")
    assert not direct.state_dir().exists()


# ---- failures leave nothing ------------------------------------------------------------------------------------------


def test_a_missing_program_fails_the_create(rig: Rig) -> None:
    spec = runc_default("nope", rootfs="../rootfs")
    with pytest.raises(RuntimeFailure, match='exec: "nope": executable file not found in \\$PATH'):
        rig.create(spec)
    assert not rig.state_dir().exists()
    assert rig.run(shell("true"))[0] == 0


def test_a_mount_that_fails_is_named_with_its_step_and_pointer(direct: Rig) -> None:
    spec = sleeper()
    spec["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=bad"]})
    with pytest.raises(RuntimeFailure, match=r"step \d+ \(/mounts/7\): .*tmpfs.*: Invalid argument"):
        direct.create(spec)


def test_a_malformed_configuration_leaves_nothing(direct: Rig) -> None:
    spec = sleeper()
    spec["process"]["cwd"] = "relative"
    with pytest.raises(InvalidSpec, match="/process/cwd"):
        direct.create(spec)
    assert not direct.state_dir().exists()


def test_a_rootfs_that_is_missing_or_a_link(direct: Rig) -> None:
    spec = sleeper()
    spec["root"]["path"] = "nowhere"
    with pytest.raises(InvalidArgument, match=r"invalid rootfs: .*No such file"):
        direct.create(spec)
    (direct.bundle / "nowhere").symlink_to("../rootfs")
    with pytest.raises(InvalidArgument, match="symlink"):
        direct.create(spec)


def test_a_failed_create_unmounts_the_rootfs_of_the_request(direct: Rig) -> None:
    spec = sleeper()
    spec["root"]["path"] = "rootfs"
    with pytest.raises(RuntimeFailure):
        direct.create(spec, rootfs=(RootfsMount("tmpfs", "tmpfs", "", ()),))
    assert not is_mount_point(str(direct.bundle / "rootfs"))


@requires("cgroup:memory")
def test_a_container_of_six_mebibytes_starts(rig: Rig) -> None:
    spec = shell("echo small")
    spec["linux"]["resources"]["memory"] = {"limit": 6 << 20}
    assert rig.run(spec) == (0, "small\n")


@requires("cgroup:memory")
def test_an_init_that_does_not_fit_its_memory_says_so(direct: Rig) -> None:
    spec = shell("true")
    spec["linux"]["resources"]["memory"] = {"limit": 4 << 10}
    with pytest.raises(RuntimeFailure, match=r"OOM-killed \(memory limit too low\?\)"):
        direct.create(spec)
    assert not direct.state_dir().exists()


def test_ignored_signals_are_not_inherited(direct: Rig) -> None:
    assert direct.run(shell("yes | head -1")) == (0, "y\n")


def test_exec_with_ignore_paused_goes_on_after_the_resume(direct: Rig) -> None:
    container = direct.create(sleeper(), gate=False)
    options = ExecOptions(ignore_paused=True)
    direct.runtime.pause(container)
    direct.runtime.resume(container)
    assert direct.output_of(container, "echo", "on", options=options) == (0, "on\n")
    direct.end(container)
