"""The keeper with real processes: launch, reap, hold, answer; and what it survives."""

from __future__ import annotations

import errno
import marshal
import os
import signal
import threading
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from contextlib import closing
from pathlib import Path

import pytest

from shimd.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimeFailure, Unavailable
from shimd.init.packets import receive_message, send_message
from shimd.init.request import LaunchRequest
from shimd.keeper.client import KeeperClient, read_exit_file, read_exits, spawn_keeper
from shimd.keeper.protocol import SOCKET_NAME
from shimd.linux import fdpass
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, pidfd_send_signal
from shimd.plan import ops, wire
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import in_rootfs, program, request, shell
from tests.kernel.keeper_rig import Keeper
from tests.support import wait

TRUE = (*program("/bin/true"),)


def test_whole_life(keeper: Keeper, place: Path) -> None:
    record = place / "exit.json"
    failure, exit_ = keeper.run("one", *program("/bin/sh", "-c", "exit 7"), exit_file=str(record))
    assert failure is None
    assert (exit_.name, exit_.code, exit_.wait_status) == ("one", 7, 7 << 8)
    assert exit_.maxrss_kib > 0
    assert read_exit_file(str(record)) == exit_
    assert not (place / "exit.json.tmp").exists()
    assert keeper.client.list().exits == (exit_,)
    keeper.client.forget("one")
    assert keeper.client.list() == ({}, (), ())


def test_killed_process_reports_its_signal(keeper: Keeper) -> None:
    launched, control = keeper.launch("victim", *program("/bin/sleep", "60"))
    with closing(control):
        rig.converse(control, launched.pid)
    pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    os.close(launched.pidfd)
    assert keeper.exit("victim").code == 128 + signal.SIGKILL


def test_parent_is_the_keeper_whatever_the_stage(keeper: Keeper) -> None:
    holder, control = keeper.launch("init", *program("/bin/sleep", "60"), clone=CLONE_NEWPID)
    rig.converse(control, holder.pid)
    control.close()
    stages = {
        "direct": (),
        "pid": (ops.Setns("init", CLONE_NEWPID),),
        "time": (ops.Unshare(CLONE_NEWTIME),),
        "both": (ops.Setns("init", CLONE_NEWPID), ops.Unshare(CLONE_NEWTIME)),
    }
    for name, stage in stages.items():
        launched, control = keeper.launch(
            name, *program("/bin/sleep", "60"), clone=0, stage=stage, fds={"init": holder.pidfd}
        )
        rig.converse(control, launched.pid)
        control.close()
        fields = dict(line.split(":\t") for line in Path(f"/proc/{launched.pid}/status").read_text().splitlines())
        assert int(fields["PPid"]) == keeper.pid
        assert len(fields["NSpid"].split()) == (2 if "init" in str(stage) else 1), name
        pidfd_send_signal(launched.pidfd, signal.SIGTERM)
        os.close(launched.pidfd)
        assert keeper.exit(name).code == 128 + signal.SIGTERM
    assert os.readlink(f"/proc/{keeper.pid}/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")
    pidfd_send_signal(holder.pidfd, signal.SIGKILL)
    os.close(holder.pidfd)
    keeper.exit("init")


def test_process_that_is_dead_before_its_stage_reports(keeper: Keeper) -> None:
    for number in range(30):
        name = f"quick-{number}"
        failure, exit_ = keeper.run(name, *TRUE, clone=0, stage=(ops.Unshare(CLONE_NEWTIME),))
        assert (failure, exit_.code) == (None, 0)
        keeper.client.forget(name)


def test_stage_that_fails_leaves_nothing(keeper: Keeper) -> None:
    before = keeper.fds()
    read_end, write_end = os.pipe()
    stage = (ops.TimeOffsets((("monotonic", 1, 0),)),)
    with pytest.raises(RuntimeFailure, match="set time offsets"):
        keeper.launch("staged", *TRUE, stage=stage, fds={"x": write_end})
    os.close(write_end)
    assert wait.read_to_end(read_end) == b""
    os.close(read_end)
    assert keeper.client.list() == ({}, (), ())
    assert keeper.fds() == before


def test_refused_clone_is_reported(keeper: Keeper) -> None:
    with pytest.raises(RuntimeFailure, match="make process: Invalid argument"):
        keeper.launch("odd", *TRUE, clone=0x40000000_00000000)
    assert keeper.client.list().alive == {}


def test_names_are_unique_until_forgotten(keeper: Keeper) -> None:
    keeper.run("name", *TRUE)
    with pytest.raises(AlreadyExists):
        keeper.launch("name", *TRUE)
    keeper.client.forget("name")
    keeper.run("name", *TRUE)


def test_launches_do_not_wait_for_each_other(keeper: Keeper, busybox: Path) -> None:
    """Sixteen clients at once; each sees its own process."""
    results: dict[str, int] = {}

    def one(number: int) -> None:
        name = f"c{number}"
        launched, control = keeper.launch(name, *in_rootfs(busybox), *shell(f"exit {number}"))
        with closing(control):
            assert [message.failure for message in rig.converse(control, launched.pid)] == []
        os.close(launched.pidfd)
        results[name] = launched.pid

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(16):
        exit_ = keeper.exit(f"c{number}")
        assert (exit_.code, exit_.pid) == (number, results[f"c{number}"])


# ---- holding -----------------------------------------------------------------------------------------------------


def test_descriptors_are_held_by_name(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    before = keeper.fds()
    keeper.client.hold({"pipe": write_end})
    os.close(write_end)
    (again,) = keeper.client.take("pipe")
    os.write(again, b"still there")
    os.close(again)
    assert keeper.client.list().held == ("pipe",)
    assert keeper.fds() == before + 1
    keeper.client.drop("pipe", "unknown")
    assert wait.read_to_end(read_end) == b"still there"
    os.close(read_end)
    with pytest.raises(NotFound):
        keeper.client.take("pipe")


def test_held_name_is_replaced(keeper: Keeper) -> None:
    first, second = os.pipe(), os.pipe()
    keeper.client.hold({"pipe": first[1]})
    keeper.client.hold({"pipe": second[1]})
    os.close(first[1])
    os.close(second[1])
    assert wait.read_to_end(first[0]) == b""
    keeper.client.drop("pipe")
    assert wait.read_to_end(second[0]) == b""
    os.close(first[0])
    os.close(second[0])


def test_descriptors_held_from_the_launch_on_are_not_the_process(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    made = request(program("/bin/sleep", "60"), name="holder")._replace(hold=(("pipe", write_end),))
    launched = keeper.client.launch(made)
    os.close(write_end)
    keeper.client.drop("pipe")
    assert wait.read_to_end(read_end) == b""
    os.close(read_end)
    again = keeper.client.pidfd("holder")
    assert again.pid == launched.pid
    pidfd_send_signal(again.pidfd, signal.SIGKILL)
    for fd in (again.pidfd, launched.pidfd):
        os.close(fd)
    keeper.exit("holder")


# ---- what it survives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\0",
        marshal.dumps("text"),
        marshal.dumps(()),
        marshal.dumps((1, 2, 3)),
        marshal.dumps(("nosuch",)),
        marshal.dumps((("list",),)),
        marshal.dumps(([],)),
        marshal.dumps(("launch",)),
        marshal.dumps(("launch", "x", 0, b"", b"", ("a", "b"), (), "", False)),
        marshal.dumps(("launch", 5, "clone", None, None, None, None, None, None)),
        marshal.dumps(("launch", "x", "clone", b"", b"", (), (), "", False)),
        marshal.dumps(("launch", "new\nline", 0, b"", b"", (), (), "", False)),
        marshal.dumps(("hold", ("a", "b"))),
        marshal.dumps(("hold", 5)),
        marshal.dumps(("take", 5)),
        marshal.dumps(("take", ([],))),
        marshal.dumps(("forget", 5)),
        marshal.dumps(("stop",)),
        marshal.dumps(("hello",)),
    ],
)
def test_malformed_messages(keeper: Keeper, data: bytes) -> None:
    before = keeper.fds()
    with closing(connect(keeper)) as sock:
        read_end, write_end = os.pipe()
        fdpass.send(sock, data, [write_end])
        os.close(write_end)
        answer, fds = receive_message(sock)
        assert not answer or answer[0] == "error"
        assert fds == []
    assert wait.read_to_end(read_end) == b""  # what came with it was closed
    os.close(read_end)
    assert keeper.client.list() == ({}, (), ())
    assert keeper.fds() == before


def connect(keeper: Keeper) -> socket:
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    sock.settimeout(wait.SECONDS)
    sock.connect(str(keeper.place / SOCKET_NAME))
    return sock


def test_plan_that_cannot_be_read_is_refused(keeper: Keeper) -> None:
    for stage, steps in ((b"", b"garbage"), (b"garbage", wire.dumps(()))):
        with pytest.raises(RuntimeFailure, match="make process: decode plan: "):
            keeper.client.launch(LaunchRequest("bad", 0, stage, steps, ()))
    assert keeper.client.list().alive == {}


def test_large_plan_travels_in_a_memfd(keeper: Keeper) -> None:
    environment = tuple(f"V{number}={'x' * 1000}" for number in range(300))
    failure, exit_ = keeper.run("large", *program("/bin/sh", "-c", "exit ${#V299}", env=environment))
    assert failure is None
    assert exit_.code == 1000 % 256


def test_client_that_dies_in_the_middle_of_a_launch_leaves_nothing(keeper: Keeper, busybox: Path) -> None:
    """Killed right after it asked for a process, before it could have read the answer."""
    before = keeper.fds()
    read_end, write_end = os.pipe()
    for staged in (False, True):
        child = os.fork()
        if child == 0:
            launch_and_die(keeper, busybox, write_end, staged=staged)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert keeper.exit("orphan").code == 1
        keeper.client.forget("orphan")
    os.close(write_end)
    assert wait.read_to_end(read_end) == b""
    os.close(read_end)
    assert keeper.client.list() == ({}, (), ())
    assert keeper.fds() == before


@pytest.mark.parametrize("staged", [False, True])
def test_launch_whose_client_is_gone_frees_its_name(keeper: Keeper, busybox: Path, *, staged: bool) -> None:
    """The keeper comes to it only when nobody waits for the answer any more."""
    read_end, write_end = os.pipe()
    os.kill(keeper.pid, signal.SIGSTOP)
    child = os.fork()
    if child == 0:
        launch_and_die(keeper, busybox, write_end, staged=staged)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.kill(keeper.pid, signal.SIGCONT)
    assert keeper.exit("orphan").code == 1
    assert keeper.client.list() == ({}, (), ())
    os.close(write_end)
    os.close(read_end)


def launch_and_die(keeper: Keeper, rootfs: Path, fd: int, *, staged: bool) -> None:
    try:
        sock = connect(keeper)
        _, control_child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        operations = (*in_rootfs(rootfs), ops.Sync("ready"), *TRUE)
        stage = (ops.Unshare(CLONE_NEWTIME),) if staged else ()
        made = request(operations, name="orphan", stage=stage, clone=CLONE_NEWNS | CLONE_NEWPID)
        arguments = (made.name, made.clone, made.stage, made.steps, ("control", "stdout"), (), "", False)
        send_message(sock, ("launch", *arguments), [control_child.fileno(), fd])
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def test_exits_wait_for_the_next_subscriber(keeper: Keeper) -> None:
    keeper.exits.close()
    launched, control = keeper.launch("unseen", *TRUE)
    rig.converse(control, launched.pid)
    control.close()
    wait.exited(launched.pidfd)
    os.close(launched.pidfd)
    keeper.exits = keeper.client.subscribe()
    assert keeper.exit("unseen").code == 0


def test_subscriber_that_does_not_read_is_no_hindrance(keeper: Keeper) -> None:
    idle = keeper.client.subscribe()
    for number in range(150):
        keeper.run(f"n{number}", *program("/nosuch"), clone=0)
        keeper.client.forget(f"n{number}")
    exits = read_exits(idle)
    assert exits is not None
    while len(exits) < 150:
        wait.readable(idle.fileno())
        more = read_exits(idle)
        assert more
        exits += more
    assert [entry.name for entry in exits] == [f"n{number}" for number in range(150)]
    idle.close()


def test_record_into_a_directory_that_is_gone(keeper: Keeper) -> None:
    _, exit_ = keeper.run("norecord", *TRUE, exit_file="/nonexistent/exit.json")
    assert exit_.code == 0


def test_orphans_of_the_hosts_pid_namespace_are_reaped(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    failure, exit_ = keeper.run(
        "parent", *shell("sleep 0.1 >&3 & exit 0", keep=1), clone=0, fds={"preserve.0": write_end}
    )
    os.close(write_end)
    assert (failure, exit_.code) == (None, 0)
    wait.read_to_end(read_end)
    os.close(read_end)
    keeper.run("after", *TRUE)
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]
    assert "Z" not in states


def test_stop_is_refused_while_something_lives(keeper: Keeper) -> None:
    launched, control = keeper.launch("alive", *program("/bin/sleep", "60"))
    rig.converse(control, launched.pid)
    control.close()
    with pytest.raises(FailedPrecondition):
        keeper.client.stop()
    keeper.client.stop(force=True)
    wait.exited(keeper.pidfd)
    assert rig.is_alive(launched.pidfd)
    pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    wait.exited(launched.pidfd)
    os.close(launched.pidfd)
    os.waitpid(launched.pid, 0)
    assert not (keeper.place / SOCKET_NAME).exists()
    with pytest.raises(Unavailable):
        keeper.client.hello()


def test_second_keeper_leaves_the_first_alone(keeper: Keeper) -> None:
    spawn_keeper(str(keeper.place))
    with KeeperClient.connect(str(keeper.place)) as again:
        assert again.hello() == keeper.pid


def test_keeper_that_was_killed_is_replaced(keeper: Keeper) -> None:
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.reap()
    assert read_exits(keeper.exits) is None
    keeper.exits.close()
    keeper.client.close()
    keeper.__init__(keeper.place)  # type: ignore[misc]
    assert keeper.client.list().alive == {}


def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="did not start"):
        spawn_keeper(str(tmp_path / "missing"))


def test_other_users_are_turned_away(keeper: Keeper) -> None:
    assert (keeper.place / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    keeper.place.parent.chmod(0o755)
    keeper.place.chmod(0o755)
    (keeper.place / SOCKET_NAME).chmod(0o666)  # a careless administrator
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(1000, 1000, 1000)
            sock = connect(keeper)
            try:
                sock.send(marshal.dumps(("list",)))
                code = 0 if sock.recv(100) == b"" else 2
            except OSError as e:
                code = 0 if e.errno in (errno.EPIPE, errno.ECONNRESET) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert keeper.client.hello() == keeper.pid
