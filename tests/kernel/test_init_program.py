"""The end of a plan: working directory, HOME, the program, the start gate, hooks; and how failures are told."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shimd.errors import RuntimeFailure
from shimd.init import handshake
from shimd.init.handshake import Failure
from shimd.linux.process import pidfd_send_signal
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.cloning import clone_into_plan
from tests.kernel.init_rig import PATH, Gate, bind, in_rootfs, program, run, shell
from tests.support import wait


@pytest.mark.parametrize(
    ("args", "env", "text", "number"),
    [
        (("nosuch",), (PATH,), 'exec: "nosuch": executable file not found in $PATH', errno.ENOENT),
        (("true",), (), 'exec: "true": executable file not found in $PATH', errno.ENOENT),
        (("true",), ("PATH=bin:",), 'exec: "true": executable file not found in $PATH', errno.ENOENT),
        (("/nosuch",), (PATH,), 'exec: "/nosuch": stat /nosuch: no such file or directory', errno.ENOENT),
        (("/etc/passwd",), (PATH,), 'exec: "/etc/passwd": permission denied', errno.EACCES),
        (("/etc",), (PATH,), 'exec: "/etc": is a directory', errno.EISDIR),
        (("/script",), (PATH,), "exec /script: exec format error", errno.ENOEXEC),
    ],
)
def test_program_that_cannot_be_run(
    busybox: Path, args: tuple[str, ...], env: tuple[str, ...], text: str, number: int
) -> None:
    (busybox / "script").write_text("echo no interpreter\n")
    (busybox / "script").chmod(0o755)
    outcome = run(*in_rootfs(busybox), *program(*args, env=env))
    assert outcome.failure is not None
    assert (str(outcome.failure), outcome.failure.errno) == (text, number)


def test_program_is_found_along_the_path_or_from_the_directory(busybox: Path) -> None:
    for args in (("echo", "x"), ("./echo", "x")):
        outcome = run(*in_rootfs(busybox, after=(ops.Chdir("/bin", late=False),)), *program(*args))
        assert outcome.output == "x\n", args


def test_environment_is_exactly_the_given_one(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox), *program("/usr/bin/env", env=(PATH, "A=1", "B=x=y", "A=2", "EMPTY=")))
    assert sorted(outcome.output.split()) == ["A=2", "B=x=y", "EMPTY=", PATH]


@pytest.mark.parametrize(
    ("passwd", "home"),
    [
        ("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "/home/user"),
        ("user:x:1000:1000::/home/user:", "/home/user"),
        ("1000:x:5:5::/no:\nbad:1000\n", "/"),
        ("", "/"),
        (None, "/"),
        ("x" * (2 << 20) + "\nuser:x:1000:1000::/too/late:\n", "/"),
    ],
)
def test_home_comes_from_the_image_within_limits(busybox: Path, passwd: str | None, home: str) -> None:
    file = busybox / "etc/passwd"
    file.unlink()
    if passwd is not None:
        file.write_text(passwd)
    outcome = run(*in_rootfs(busybox, after=(ops.HomeEnv(1000),)), *shell("echo $HOME"))
    assert outcome.output == home + "\n"


def test_home_from_a_pipe_is_not_waited_for(busybox: Path) -> None:
    (busybox / "etc/passwd").unlink()
    os.mkfifo(busybox / "etc/passwd")
    outcome = run(*in_rootfs(busybox, after=(ops.HomeEnv(0),)), *shell("echo $HOME"))
    assert outcome.output == "/\n"


def test_home_of_the_environment_wins_unless_empty(busybox: Path) -> None:
    for given, home in (("HOME=/mine", "/mine"), ("HOME=", "/root")):
        outcome = run(*in_rootfs(busybox, after=(ops.HomeEnv(0),)), *shell("echo $HOME", env=(PATH, given)))
        assert outcome.output == home + "\n"


def test_working_directory_of_a_user_only(busybox: Path) -> None:
    """Where root may not enter (here: a root without capabilities), the user may later."""
    private = busybox / "private"
    private.mkdir()
    private.chmod(0o700)
    os.chown(private, 1000, 1000)
    none = ops.Capabilities(1 << 6 | 1 << 7, 1 << 6 | 1 << 7, 0, 0)
    user = ops.User(1000, 1000, (), keep_caps=False)
    after = (none, ops.Chdir("/private", late=False), user, ops.Chdir("/private", late=True))
    assert run(*in_rootfs(busybox, after=after), *program("/bin/pwd")).output == "/private\n"
    outcome = run(*in_rootfs(busybox, after=(ops.Chdir("/nosuch", late=False),)), *program("/bin/pwd"))
    assert outcome.failure is not None
    assert "/nosuch" in str(outcome.failure)


@pytest.mark.parametrize("path", ["/proc/self/fd/{}", "/proc/self/fd/{}/etc", "/proc/1/fd/{}"])
def test_working_directory_outside_is_refused(busybox: Path, path: str) -> None:
    """CVE-2024-21626. Only slots survive, so the attack needs one; with it, the directory is looked at."""
    outside = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for number in range(3, 12):
            after = (ops.Chdir(path.format(number), late=False),)
            outcome = run(*in_rootfs(busybox, after=after), *program("/bin/pwd"), fds={"init": outside})
            if outcome.failure is None:  # the descriptor of the container's own root
                assert outcome.output in ("/\n", "/etc\n")
            else:
                assert "outside of container" in str(outcome.failure) or outcome.failure.errno
    finally:
        os.close(outside)


def test_preserved_descriptors_are_numbered_from_3(busybox: Path) -> None:
    pairs = [os.pipe() for _ in range(3)]
    slots = {f"preserve.{index}": pair[1] for index, pair in enumerate(reversed(pairs))}
    outcome = run(*in_rootfs(busybox), *shell("echo a >&3; echo b >&4; echo c >&5; echo d >&6", keep=3), fds=slots)
    for _, write_end in pairs:
        os.close(write_end)
    assert [wait.read_to_end(read_end) for read_end, _ in pairs] == [b"c\n", b"b\n", b"a\n"]
    assert "Bad file descriptor" in outcome.output or "bad" in outcome.output.lower()
    for read_end, _ in pairs:
        os.close(read_end)


# ---- the start gate ----------------------------------------------------------------------------------------------


def test_program_waits_for_start(busybox: Path, place: Path) -> None:
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("echo started"))
    assert [message.kind for message in gate.messages] == ["created"]
    assert rig.is_alive(gate.pidfd)
    assert handshake.start(gate.path) is None
    with pytest.raises(handshake.NotStarted):
        handshake.start(gate.path)
    assert gate.end() == (0, "started\n")


def test_failure_behind_the_gate_reaches_start(busybox: Path, place: Path) -> None:
    (busybox / "script").write_text("no interpreter\n")
    (busybox / "script").chmod(0o755)
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *program("/script"))
    failure = handshake.start(gate.path)
    assert str(failure) == "exec /script: exec format error"
    status, _ = gate.end()
    assert os.WEXITSTATUS(status) == 1


def test_one_of_two_starts_wins(busybox: Path, place: Path) -> None:
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("echo started"))
    starters = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    outcomes: list[Failure | str | None] = []
    starters[0].connect(gate.path)
    try:
        starters[1].connect(gate.path)
    except ConnectionRefusedError:  # init has taken the first one and closed the gate
        assert handshake.read_outcome(starters[0]) is None
        outcomes = [None, "lost"]
    for starter in starters:
        if len(outcomes) < 2:
            try:
                outcomes.append(handshake.read_outcome(starter))
            except handshake.NotStarted:
                outcomes.append("lost")
        starter.close()
    assert outcomes == [None, "lost"]
    assert gate.end() == (0, "started\n")


def test_start_of_an_init_that_was_killed(busybox: Path, place: Path) -> None:
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("echo never"))
    pidfd_send_signal(gate.pidfd, signal.SIGKILL)
    wait.exited(gate.pidfd)
    with pytest.raises(handshake.NotStarted):
        handshake.start(gate.path)
    assert gate.end() == (signal.SIGKILL, "")


def test_start_whose_client_vanishes_starts_all_the_same(busybox: Path, place: Path) -> None:
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("echo started"))
    with socket.socket(socket.AF_UNIX) as starter:
        starter.connect(gate.path)
    assert gate.end() == (0, "started\n")


def test_created_container_holds_nothing_open(busybox: Path, place: Path) -> None:
    """No mount of the host stays busy, and no other container's descriptors are at hand."""
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("true"))
    links = {os.readlink(f"/proc/{gate.pid}/fd/{name}") for name in os.listdir(f"/proc/{gate.pid}/fd")}
    kinds = {link.split(":")[0] for link in links}
    assert kinds <= {"/", "/dev/null", "pipe", "socket"}
    assert handshake.start(gate.path) is None
    gate.end()


# ---- the runtime goes away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [handshake.ABORT, b""])
def test_init_ends_when_the_runtime_gives_up(busybox: Path, answer: bytes) -> None:
    control, control_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    operations = (*in_rootfs(busybox)[:-1], ops.Sync("ready"), *program("/bin/true"))
    launched = clone_into_plan(rig.request(operations, fds={"control": control_child.fileno()}))
    control_child.close()
    assert handshake.receive(control).text == "ready"
    if answer:
        control.send(answer)
    control.close()
    wait.exited(launched.pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1]) == 1
    os.close(launched.pidfd)


# ---- hooks -------------------------------------------------------------------------------------------------------


def hooks(*specs: ops.HookSpec, kind: str = "createContainer") -> ops.RunHooks:
    return ops.RunHooks(kind, specs, ('{"id": "x", "pid": ', ', "status": "creating"}'))


def hook(script: str, env: tuple[str, ...] = (), timeout: int = 0) -> ops.HookSpec:
    return ops.HookSpec("/bin/sh", ("sh", "-c", script), env, timeout)


def test_hooks_get_the_state_and_exactly_their_environment(busybox: Path, tmp_path: Path) -> None:
    script = f"cat > {tmp_path}/state; set > {tmp_path}/env; pwd > {tmp_path}/cwd"
    outcome = run(*in_rootfs(busybox, hooks(hook(script, ("A=1",)))), *program("/bin/true"))
    assert outcome.failure is None
    assert json.loads((tmp_path / "state").read_text()) == {"id": "x", "pid": 1, "status": "creating"}
    assert (tmp_path / "cwd").read_text() == f"{busybox}\n"
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "A" in names
    assert not names & {"HOME", "LANG", "SHELL", "USER"}


def test_hook_runs_with_default_signals_and_no_descriptors(busybox: Path, tmp_path: Path) -> None:
    script = f"grep -E 'Sig(Blk|Ign)' /proc/self/status > {tmp_path}/signals; ls /proc/self/fd > {tmp_path}/fds"
    run(*in_rootfs(busybox, hooks(hook(script, (PATH,)))), *program("/bin/true"))
    assert all(int(line.split()[1], 16) == 0 for line in (tmp_path / "signals").read_text().splitlines())
    assert (tmp_path / "fds").read_text().split() == ["0", "1", "2", "3"]


def test_failing_hook_is_told_with_its_output(busybox: Path) -> None:
    failing = hooks(hook("true"), hook("cat; echo out; echo err >&2; exit 3", (PATH,)))
    outcome = run(*in_rootfs(busybox, failing), *program("/bin/true"))
    assert outcome.failure is not None
    text = str(outcome.failure)
    assert text.startswith("error running createContainer hook #1: exit status 3, stdout+stderr: {")
    assert text.endswith("out\nerr\n")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ops.HookSpec("/nonexistent", (), (), 0), "exec /nonexistent: No such file or directory"),
        (hook("kill -9 $$"), "signal: killed"),
        (hook("sleep 60", (PATH,), 1), "hook ran past specified timeout of 1.0s"),
        (hook("yes | head -c 200000; exit 1", (PATH,)), "exit status 1"),
    ],
)
def test_hook_failures(busybox: Path, spec: ops.HookSpec, text: str) -> None:
    outcome = run(*in_rootfs(busybox, hooks(spec)), *program("/bin/true"))
    assert outcome.failure is not None
    assert text in str(outcome.failure)
    assert len(str(outcome.failure)) < 10_000


def test_hook_that_leaves_a_daemon_is_not_waited_for(busybox: Path) -> None:
    outcome = run(*in_rootfs(busybox, hooks(hook("sleep 60 & exit 0", (PATH,)))), *program("/bin/true"))
    assert outcome.failure is None


def test_hook_that_reads_nothing_gets_a_large_state(busybox: Path) -> None:
    big = ops.RunHooks(
        "createContainer",
        (hook("exec 0<&-; sleep 0.2; exit 0", (PATH,)), hook("wc -c | grep -q 20000", (PATH,))),
        ("x" * 200000, ""),
    )
    assert run(*in_rootfs(busybox, big), *program("/bin/true")).failure is None


def test_start_container_hook_runs_inside(busybox: Path, place: Path) -> None:
    inside = hooks(hook("pwd > /made-by-hook; cat >> /made-by-hook", (PATH,)), kind="startContainer")
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(), inside)), *program("/bin/cat", "/made-by-hook"))
    assert not (busybox / "made-by-hook").exists()
    assert handshake.start(gate.path) is None
    assert gate.end()[1].startswith("/\n{")


def test_start_container_hook_without_variables_has_those_of_the_program(busybox: Path) -> None:
    """As under runc: images rely on it."""
    spec = ops.HookSpec("/bin/sh", ("sh", "-c", "env >>/hook"), (), 0)
    end = (ops.HomeEnv(0), *program("/bin/cat", "/hook", env=(PATH, "ONE=two")))
    found = end[:2], hooks(spec, spec._replace(env=("ONLY=this", PATH)), kind="startContainer"), end[2:]
    outcome = run(*in_rootfs(busybox), *found[0], found[1], *found[2])
    assert outcome.failure is None
    lines = [line for line in outcome.output.splitlines() if not line.startswith(("PWD=", "SHLVL="))]
    assert sorted(lines) == sorted([PATH, "ONE=two", "HOME=/root", PATH, "ONLY=this"])


# ---- hygiene -----------------------------------------------------------------------------------------------------


def test_bug_is_reported_as_data(busybox: Path) -> None:
    outcome = run(ops.MountCgroup1("/x", (("a",),), (), rig.QUIET, (), readonly=False), *program("/bin/true"))  # type: ignore[arg-type]
    assert outcome.failure is not None
    assert outcome.failure.op == "MountCgroup1"
    garbage = rig.request((), fds={})._replace(steps=b"garbage")
    with pytest.raises(RuntimeFailure, match="decode plan"):
        clone_into_plan(garbage)


def test_nothing_is_imported_after_the_clone(busybox: Path, place: Path) -> None:
    """A late import would find no library, or the container's. With a bare interpreter: pytest has imported all there
    is.
    """
    everything = in_rootfs(
        busybox,
        rig.DEV_PTS,
        bind("/etc/hosts", "/etc/hosts"),
        rig.mount("/copied", "tmpfs", copy_up=True),
        hooks(hook("exit 0")),
        after=(ops.HomeEnv(0), ops.MaskPaths(("/etc", "/proc/keys"), ""), ops.Chdir("/", late=False)),
    )
    plans = {
        "success": (*everything, *program("/bin/true")),
        "error": (*everything, *program("nosuch")),
        "OSError": (ops.Chdir("/nosuch", late=False),),
        "bug": (ops.Symlink(None, None, replace=False, only_if=""),),  # type: ignore[arg-type]
        "hook": in_rootfs(busybox, hooks(hook("exit 1"))),
        "option": in_rootfs(busybox, rig.mount("/x", "tmpfs", "size=much")),
    }
    paths = [str(place / name) for name in plans]
    for path, operations in zip(paths, plans.values(), strict=True):
        Path(path).write_bytes(rig.request(operations).steps)
    top = Path(__file__).parents[2]
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("late_imports.py")), str(top), *paths]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=top).stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["Execute", *["Failure"] * 5]
    assert [line.split(": ")[1].split("]")[0] for line in lines] == ["["] * 6


def test_init_cannot_be_traced_or_looked_into_from_inside(busybox: Path, place: Path) -> None:
    gate = Gate(place, *in_rootfs(busybox, after=(ops.WaitStart(),)), *shell("true"))
    assert os.stat(f"/proc/{gate.pid}/environ").st_uid == 0
    with open(f"/proc/{gate.pid}/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status)
    assert fields["Name"] == "shimd:[init]"
    assert handshake.start(gate.path) is None
    gate.end()
