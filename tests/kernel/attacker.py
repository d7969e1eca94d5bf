"""A process inside a container that tries everything on the processes that it sees there."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from shimd.linux import caps, process
from tests.support import wait

_PTRACE_SEIZE = 0x4206
_LINKS = ("exe", "cwd", "root", "ns/mnt", "ns/user")
_FILES = ("mem", "environ", "maps", "auxv", "smaps", "pagemap", "personality", "syscall", "stack")
_LISTED = ("fd", "map_files")

_libc = ctypes.CDLL(None, use_errno=True)


class Victim(NamedTuple):
    """A process that was seen: its pid in the container, its name, and which of the attacks worked."""

    pid: int
    name: str
    breaches: tuple[str, ...]


class Attacker:
    """Does one round on every process but itself whenever it is asked."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._reports = reports

    def round(self) -> list[Victim]:
        """Without the program of the container that it is in: that is its own."""
        os.write(self._orders, b"x")
        victims = [Victim(pid, name, tuple(breaches)) for pid, name, breaches in self._answer()]
        return [victim for victim in victims if victim.name != "sleep"]

    def _answer(self) -> list[tuple[int, str, list[str]]]:
        line = wait.read_until(self._reports, b"\n")
        answer: list[tuple[int, str, list[str]]] = json.loads(line)
        return answer


@contextmanager
def attacker(init: int, *capabilities: str) -> Iterator[Attacker]:
    """In all namespaces of the process ``init`` but the user one, as root with these capabilities."""
    orders, orders_write = os.pipe()
    reports_read, reports = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(orders_write)
            os.close(reports_read)
            _enter(init, sum(1 << caps.NUMBERS[name] for name in capabilities))
            _serve(orders, reports)
        finally:
            os._exit(1)
    os.close(orders)
    os.close(reports)
    try:
        yield Attacker(orders_write, reports_read)
    finally:
        os.close(orders_write)
        os.waitpid(pid, 0)
        os.close(reports_read)


def _enter(init: int, mask: int) -> None:
    """The process that returns is in the pid namespace too; the other one waits for it."""
    pidfd = os.pidfd_open(init)
    kinds = process.CLONE_NEWPID | process.CLONE_NEWNS | process.CLONE_NEWUTS | process.CLONE_NEWIPC
    process.setns(pidfd, kinds)
    os.close(pidfd)
    child = os.fork()
    if child:
        for fd in range(3, 100):
            try:
                os.close(fd)
            except OSError:
                continue
        os.waitpid(child, 0)
        os._exit(0)
    caps.drop_bounding(mask)
    caps.capset(caps.CapSets(mask, mask, 0))


def _serve(orders: int, reports: int) -> None:
    while os.read(orders, 1):
        victims = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                victims.append(_attack(int(name)))
        os.write(reports, json.dumps(victims).encode() + b"\n")


def _attack(pid: int) -> Victim:
    try:
        with open(f"/proc/{pid}/comm") as file:
            comm = file.read().strip()
    except OSError:
        comm = ""
    return Victim(pid, comm, tuple(name for name, attempt in _attempts(pid) if _works(attempt)))


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _attempts(pid: int) -> Iterator[tuple[str, Callable[[], object]]]:
    top = f"/proc/{pid}"
    for name in _LINKS:
        yield name, partial(os.readlink, f"{top}/{name}")
        yield f"open {name}", partial(_open, f"{top}/{name}", os.O_PATH)
    for name in _FILES:
        yield name, partial(_read, f"{top}/{name}")
    for name in _LISTED:
        yield name, partial(_follow_any, f"{top}/{name}")
    yield "write exe", partial(_open, f"{top}/exe", os.O_WRONLY)
    yield "write mem", partial(_open, f"{top}/mem", os.O_RDWR)
    yield "ptrace", partial(_ptrace, pid)
    yield "process_vm_readv", partial(_read_memory, pid)
    for fd in range(8):
        yield f"pidfd_getfd {fd}", partial(_steal, pid, fd)


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.seek(0 if not path.endswith("mem") else id(None))
        if not file.read(8):
            raise OSError("empty")


def _follow_any(folder: str) -> None:
    """The names of what is open may be seen by root; where they lead may not."""
    for name in os.listdir(folder):
        try:
            return os.close(os.open(f"{folder}/{name}", os.O_PATH))
        except OSError:
            continue
    raise OSError("none")


def _ptrace(pid: int) -> None:
    """A child does it, whose end sets the victim free."""
    child = os.fork()
    if child == 0:
        os._exit(int(_libc.ptrace(_PTRACE_SEIZE, pid, None, None) < 0))
    if os.waitpid(child, 0)[1] != 0:
        raise OSError("refused")


def _read_memory(pid: int) -> None:
    """The attacker is a fork of the process that forked the victim, or of its kind: what lies where is known."""
    target = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(target), 8)
    remote = struct.pack("=QQ", id(None), 8)
    _checked(_libc.process_vm_readv(pid, local, 1, remote, 1, 0))


def _steal(pid: int, fd: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        os.close(process.pidfd_getfd(pidfd, fd))
    finally:
        os.close(pidfd)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
