"""The runtime's half of the handshake, against an init that is played by the test."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair
from collections.abc import Iterator

import pytest

from shimd.errors import RuntimeFailure
from shimd.init import handshake
from shimd.init.handshake import Failure
from shimd.linux import fdpass
from shimd.runtime.dialogue import InitDied, InitFailed, Outcome, converse


class Init:
    """What init says is sent beforehand: the kernel queues it, and the answers."""

    def __init__(self) -> None:
        self.control, self.end = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        self.pidfd = os.pidfd_open(os.getpid())
        self.points: list[str] = []

    def says(self, *messages: bytes) -> None:
        for message in messages:
            self.end.send(message)

    def sends_console(self) -> int:
        read_end, write_end = os.pipe()
        fdpass.send(self.end, handshake.encode_console(), [write_end])
        os.close(write_end)
        return read_end

    def dies(self) -> None:
        self.end.close()

    def talk(self, *, gate: bool) -> Outcome:
        return converse(self.control, self.pidfd, self.points.append, gate=gate)

    def answers(self) -> list[bytes]:
        self.end.settimeout(0)
        answers: list[bytes] = []
        while True:
            try:
                answers.append(self.end.recv(100))
            except BlockingIOError:
                return answers

    def close(self) -> None:
        self.control.close()
        self.end.close()
        os.close(self.pidfd)


@pytest.fixture
def init() -> Iterator[Init]:
    played = Init()
    yield played
    played.close()


READY = handshake.encode_sync("ready")
FAILURE = Failure(12, "Mount", "/mounts/3", "mount proc on /proc", 13, "Permission denied")


def test_a_gated_plan_ends_with_created(init: Init) -> None:
    init.says(handshake.encode_sync("maps"), handshake.encode_sync("hooks"), READY, handshake.CREATED)
    assert init.talk(gate=True) == Outcome(-1, ())
    assert init.points == ["maps", "hooks", "ready"]
    assert init.answers() == [handshake.GO] * 3


def test_a_plan_without_a_gate_ends_when_execve_closes_the_socket(init: Init) -> None:
    init.says(READY)
    init.dies()
    assert init.talk(gate=False) == Outcome(-1, ())


def test_warnings_and_the_console_are_handed_on(init: Init) -> None:
    master = init.sends_console()
    init.says(handshake.encode_warning("one"), READY, handshake.encode_warning("two"), handshake.CREATED)
    outcome = init.talk(gate=True)
    assert outcome.warnings == ("one", "two")
    os.write(outcome.console, b"x")
    assert os.read(master, 1) == b"x"
    os.close(outcome.console)
    os.close(master)


def test_a_tree_is_mapped_and_closed_and_init_told_how_that_went(init: Init) -> None:
    asked: list[tuple[str, str]] = []

    def map_ids(message: handshake.Message) -> int:
        os.fstat(message.fd)
        asked.append((message.kind, message.text))
        return 22 if message.text == "ids.1" else 0

    for slot, recursive in (("ids.0", False), ("ids.1", True)):
        with open("/dev/null", "rb") as tree:
            fdpass.send(init.end, handshake.encode_id_map(slot, recursive=recursive), [tree.fileno()])
    init.says(READY, handshake.CREATED)
    converse(init.control, init.pidfd, init.points.append, gate=True, map_ids=map_ids)
    assert asked == [("idmap", "ids.0"), ("ridmap", "ids.1")]
    assert init.answers() == [handshake.mapped(0), handshake.mapped(22), handshake.GO]


def test_a_listener_is_fetched_before_init_goes_on(init: Init) -> None:
    numbers: list[int] = []
    init.says(handshake.encode_listener(9), READY)
    init.dies()
    converse(
        init.control, init.pidfd, init.points.append, gate=False, on_listener=lambda number, _: numbers.append(number)
    )
    assert numbers == [9]


def test_a_failure_names_step_field_attempt_and_cause(init: Init) -> None:
    init.says(handshake.encode_failure(FAILURE))
    with pytest.raises(InitFailed) as caught:
        init.talk(gate=True)
    assert str(caught.value) == "step 12 (/mounts/3): mount proc on /proc: Permission denied"
    assert caught.value.failure == FAILURE


def test_a_failure_of_what_nobody_asked_for_has_no_pointer(init: Init) -> None:
    init.says(handshake.encode_failure(FAILURE._replace(origin="")))
    with pytest.raises(InitFailed, match=r"^step 12: mount proc"):
        init.talk(gate=True)


@pytest.mark.parametrize("gate", [True, False])
def test_an_init_that_dies_early_is_reported_with_where_it_was(init: Init, *, gate: bool) -> None:
    init.says(handshake.encode_sync("maps"))
    init.dies()
    with pytest.raises(InitDied, match="init died after maps"):
        init.talk(gate=gate)


def test_an_init_that_dies_at_the_gate_is_dead(init: Init) -> None:
    init.says(READY)
    init.dies()
    with pytest.raises(InitDied, match="init died after ready"):
        init.talk(gate=True)


def test_a_dead_init_is_noticed_while_a_descendant_keeps_the_socket(init: Init) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.close(init.pidfd)
    init.pidfd = os.pidfd_open(child)
    with pytest.raises(InitDied, match="init died after launch"):
        init.talk(gate=True)
    os.waitpid(child, 0)


@pytest.mark.parametrize("message", [b"x", b"sync", b"1", handshake.encode_console(), b"idmap\0ids.0"])
def test_nonsense_is_an_error_and_no_crash(init: Init, message: bytes) -> None:
    init.says(message)
    with pytest.raises(RuntimeFailure, match="handshake with init"):
        init.talk(gate=True)


def test_a_second_console_is_refused_and_none_is_leaked(init: Init) -> None:
    for master in (init.sends_console(), init.sends_console()):
        os.close(master)
    with pytest.raises(RuntimeFailure, match="a second console"):
        init.talk(gate=True)


def test_an_error_of_ours_closes_the_console(init: Init) -> None:
    os.close(init.sends_console())
    init.says(READY)

    def fail(point: str) -> None:
        raise RuntimeFailure(f"cannot {point}")

    with pytest.raises(RuntimeFailure, match="cannot ready"):
        converse(init.control, init.pidfd, fail, gate=True)
    assert init.answers() == []
