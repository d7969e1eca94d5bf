from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from shimd.linux import proc, process
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS, CLONE_PARENT, clone3
from tests.kernel.child import run_in_child


def test_clone3_returns_pid_and_a_cloexec_pidfd() -> None:
    pid, pidfd = clone3(0)
    if pid == 0:
        os._exit(7)
    assert not os.get_inheritable(pidfd)
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert result is not None
    assert (result.si_pid, result.si_status) == (pid, 7)


def test_clone3_makes_namespaces() -> None:
    host = os.readlink("/proc/self/ns/uts")

    def check() -> None:
        assert os.getpid() == 1
        assert os.readlink("/proc/thread-self/ns/uts") != host or not os.path.exists("/proc/thread-self")

    run_in_child(check, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS)


def test_clone3_refuses_bad_flags_and_stays_usable() -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        clone3(process.CLONE_VM | CLONE_NEWPID | 0xFF)  # an exit signal among the flags
    assert caught.value.errno == errno.EINVAL
    run_in_child(lambda: None)


def test_clone3_parent_makes_a_sibling() -> None:
    read_end, write_end = os.pipe()

    def stage() -> None:
        pid, pidfd = clone3(CLONE_PARENT)
        if pid == 0:
            os._exit(3)
        os.write(write_end, str(pid).encode())
        os.close(pidfd)

    run_in_child(stage)
    sibling = int(os.read(read_end, 32))
    assert os.waitstatus_to_exitcode(os.waitpid(sibling, 0)[1]) == 3
    os.close(read_end)
    os.close(write_end)


def test_child_runs_python_hooks_of_fork() -> None:
    """Python's own state is put right: its idea of the main thread, its locks, its random seed."""
    import random
    import threading

    before = random.getrandbits(64)

    def check() -> None:
        assert threading.main_thread() is threading.current_thread()
        assert random.getrandbits(64) != before
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # only allowed in the main thread

    run_in_child(check)


def test_pidfd_calls() -> None:
    pid, pidfd = clone3(0)
    if pid == 0:
        signal.pause()
    again = process.pidfd_open(pid)
    assert process.pidfd_exit_status(pidfd) is None
    copy = process.pidfd_getfd(pidfd, 1)
    assert os.path.sameopenfile(copy, 1)
    process.pidfd_send_signal(again, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        process.pidfd_send_signal(again, signal.SIGTERM)
    status = process.pidfd_exit_status(again)
    assert status in (signal.SIGTERM, None)
    assert status is not None or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15)
    for fd in (copy, pidfd, again):
        os.close(fd)


def test_pidfd_exit_status_of_other_files_is_unknown() -> None:
    with open("/dev/null") as file:
        assert process.pidfd_exit_status(file.fileno()) is None


def test_setns_joins_several_namespaces_of_a_pidfd() -> None:
    hold_read, hold_write = os.pipe()
    pid, pidfd = clone3(CLONE_NEWNS | CLONE_NEWUTS)
    if pid == 0:
        os.close(hold_write)
        process.sethostname("inner")
        process.setdomainname("example.org")
        os.read(hold_read, 1)
        os._exit(0)
    wanted = os.readlink(f"/proc/{pid}/ns/uts")

    def join() -> None:
        process.setns(pidfd, CLONE_NEWNS | CLONE_NEWUTS)
        assert os.readlink("/proc/self/ns/uts") == wanted

    run_in_child(join)
    with open(f"/proc/{pid}/ns/uts") as file:
        assert process.namespace_type(file.fileno()) == CLONE_NEWUTS
    with open("/dev/null") as file, pytest.raises(OSError, match="Inappropriate ioctl"):
        process.namespace_type(file.fileno())
    os.close(hold_read)
    os.close(hold_write)
    os.waitpid(pid, 0)
    os.close(pidfd)


def test_unshare_and_hostname() -> None:
    def check() -> None:
        process.unshare(CLONE_NEWUTS)
        process.sethostname("héllo")
        assert os.uname().nodename == "héllo"
        process.setdomainname("example.org")
        assert Path("/proc/sys/kernel/domainname").read_text() == "example.org\n"

    run_in_child(check)


def test_prlimit_takes_64_bit_values() -> None:
    def check() -> None:
        process.prlimit(0, resource.RLIMIT_CORE, 0, 0)
        assert process.get_rlimit(0, resource.RLIMIT_CORE) == (0, 0)
        _, hard = process.get_rlimit(0, resource.RLIMIT_FSIZE)
        assert hard == process.RLIM_INFINITY
        process.prlimit(0, resource.RLIMIT_FSIZE, 2**40, hard)
        assert process.get_rlimit(0, resource.RLIMIT_FSIZE) == (2**40, hard)

    run_in_child(check)
    with pytest.raises(OSError, match="Invalid argument"):
        process.prlimit(0, resource.RLIMIT_CORE, 2, 1)


def test_prctl_helpers() -> None:
    def check() -> None:
        process.set_name("a name that is too long")
        assert Path("/proc/self/comm").read_text() == "a name that is \n"
        process.set_keepcaps(1)
        process.set_pdeathsig(signal.SIGKILL)
        process.set_child_subreaper(1)
        process.set_dumpable(0)
        assert process.get_dumpable() == 0
        process.set_no_new_privs()
        assert process.prctl(process.PR_GET_NO_NEW_PRIVS) == 1

    run_in_child(check)


def test_close_range_marks_descriptors() -> None:
    def check() -> None:
        fd = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(fd, True)  # noqa: FBT003 (its signature)
        process.close_range(3, process.MAX_FD, process.CLOSE_RANGE_CLOEXEC)
        assert not os.get_inheritable(fd)
        process.close_range(3, process.MAX_FD, 0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    read_end, write_end = os.pipe()
    pid, pidfd = clone3(0)
    if pid == 0:  # not run_in_child: its report pipe would be closed
        try:
            check()
        finally:
            os._exit(0 if not sys.exc_info()[0] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (read_end, write_end, pidfd):
        os.close(fd)


def test_personality_is_asked_and_set() -> None:
    def check() -> None:
        process.personality(0x0008)  # PER_LINUX32
        assert process.personality(0xFFFFFFFF) == 0x0008

    run_in_child(check)


def test_reset_signals_undoes_what_python_ignores() -> None:
    def check() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGRTMAX, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        process.reset_signals()
        status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
        assert (status["SigIgn"], status["SigBlk"], status["SigCgt"]) == ("0" * 16,) * 3

    run_in_child(check)


def test_reset_signals_undoes_what_posix_spawn_ignores() -> None:
    code = "from shimd.linux.process import reset_signals as r; r(); print(open('/proc/self/status').read())"
    read, write = os.pipe()
    command = [sys.executable, "-c", code]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with open(read) as file:
        assert "SigIgn:\t0000000000000000\n" in file.read()
    assert os.waitpid(pid, 0)[1] == 0


def test_ignored_signals_are_reset_before_an_execve() -> None:
    def check() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        process.reset_ignored_signals()
        status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
        assert (status["SigIgn"], status["SigBlk"]) == ("0" * 16,) * 2

    run_in_child(check)


def test_session_keyring() -> None:
    def check() -> None:
        serial = process.keyctl_join_session_keyring("shimd-test")
        described = process.keyctl_describe(serial).split(";")
        assert (described[0], described[4]) == ("keyring", "shimd-test")
        process.keyctl_setperm(serial, int(described[3], 16) | process.KEY_USR_SEARCH)
        assert int(process.keyctl_describe(serial).split(";")[3], 16) & process.KEY_USR_SEARCH

    run_in_child(check)


def test_execveat_runs_an_unlinked_program() -> None:
    program = os.open("/bin/sh", os.O_RDONLY | os.O_CLOEXEC)
    pid, pidfd = clone3(0)
    if pid == 0:
        try:
            process.execveat(program, ("sh", "-c", 'exit "$CODE"'), ("CODE=9",))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(program)
    os.close(pidfd)
    with open("/etc/passwd") as file, pytest.raises(PermissionError):
        process.execveat(file.fileno(), ("x",), ())


def test_strings_with_nul_are_refused() -> None:
    with pytest.raises(ValueError, match="null byte"):
        process.keyctl_join_session_keyring("a\0b")


def test_stat_of_a_process() -> None:
    own = proc.stat(os.getpid())
    assert own.state == "R"
    assert own.starttime > 0
    pid, pidfd = clone3(0)
    if pid == 0:
        process.set_name(") Z (")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert proc.stat(pid).state == "T"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)
    with pytest.raises(FileNotFoundError):
        proc.stat(pid)
