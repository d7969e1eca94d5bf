from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_WR, SOCK_SEQPACKET, SOCK_STREAM, socketpair

import pytest

from shimd.init import handshake
from shimd.init.handshake import Failure, Message, ProtocolError
from shimd.linux import fdpass

FAILURE = Failure(3, "Mount", "/mounts/0", "mount tmpfs on /x", 22, "Invalid argument")


def test_messages_survive_the_way() -> None:
    assert handshake.decode(handshake.encode_sync("ready")) == Message("sync", "ready")
    assert handshake.decode(handshake.encode_warning("careful")) == Message("warning", "careful")
    assert handshake.decode(handshake.encode_id_map("ids.0", recursive=False)) == Message("idmap", "ids.0")
    assert handshake.decode(handshake.encode_id_map("ids.1", recursive=True)) == Message("ridmap", "ids.1")
    assert handshake.decode(handshake.encode_listener(7)) == Message("listener", "7")
    assert handshake.decode(handshake.CREATED) == Message("created")
    assert handshake.decode(handshake.encode_failure(FAILURE)) == Message("error", "Invalid argument", FAILURE)
    assert handshake.decode(b"") == Message("eof")
    odd = FAILURE._replace(attempt="mount /\udcff\ud800", text="two\nlines")
    assert handshake.decode(handshake.encode_failure(odd)).failure == odd
    assert handshake.decode(handshake.encode_warning("null\0byte")) == Message("warning", "null?byte")


def test_long_texts_are_cut_to_what_a_reader_takes() -> None:
    data = handshake.encode_failure(FAILURE._replace(text="x" * 100_000))
    assert len(data) < handshake.MAX_MESSAGE
    failure = handshake.decode(data).failure
    assert failure is not None
    assert len(failure.text) == handshake.MAX_TEXT


@pytest.mark.parametrize("letter", ["x", "ä", "語", "\ud800"])
def test_no_failure_is_too_long_for_a_message(letter: str) -> None:
    long = letter * 200_000
    data = handshake.encode_failure(FAILURE._replace(origin=f"/{long}", attempt=f"bind {long}", text=f"error: {long}"))
    assert len(data) < handshake.MAX_MESSAGE
    assert len(handshake.encode_warning(long)) < handshake.MAX_MESSAGE
    failure = handshake.decode(data).failure
    assert failure is not None
    assert str(failure).startswith("bind ")
    assert failure.text.startswith("error: ")


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\xff",
        b"sync",
        b"sync\0ready\0more",
        b"created\0",
        b"unheard of",
        b"listener\0seven\0",
        b"listener\07",
        b"error\0three\0Mount\0\0\00\0",
        b"error\03\0Mount",
        b"error\0" + b"9" * 5000 + b"\0Mount\0\0\00\0",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        handshake.decode(data)


def test_failure_reads_as_attempt_and_reason() -> None:
    assert str(FAILURE) == "mount tmpfs on /x: Invalid argument"
    assert str(FAILURE._replace(attempt="", text='exec: "x": permission denied')) == 'exec: "x": permission denied'


def test_console_message_carries_the_master() -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    fdpass.send(theirs, handshake.encode_console(), [write_end])
    message = handshake.receive(mine)
    os.write(message.fd, b"x")
    assert os.read(read_end, 1) == b"x"
    for fd in (read_end, write_end, message.fd):
        os.close(fd)
    for sock in (mine, theirs):
        sock.close()


def test_descriptors_that_do_not_belong_to_a_message_are_closed() -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    fdpass.send(theirs, handshake.encode_sync("ready"), [write_end])
    os.close(write_end)
    assert handshake.receive(mine) == Message("sync", "ready")
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    for sock in (mine, theirs):
        sock.close()


def test_console_without_a_descriptor_is_refused() -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    theirs.send(handshake.encode_console())
    with pytest.raises(ProtocolError):
        handshake.receive(mine)
    for sock in (mine, theirs):
        sock.close()


def test_a_listener_on_the_start_connection_is_fetched_before_init_goes_on() -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    numbers = []

    def take(number: int, fd: int) -> None:
        assert fd == -1
        numbers.append(number)
        theirs.send(handshake.encode_failure(FAILURE))
        theirs.shutdown(SHUT_WR)

    theirs.send(b"0" + handshake.encode_listener(12))
    assert handshake.read_outcome(mine, take) == FAILURE
    assert (numbers, theirs.recv(10)) == ([12], handshake.GO)
    for sock in (mine, theirs):
        sock.close()


def test_a_listener_is_sent_to_a_runtime_that_may_not_fetch_it() -> None:
    mine, theirs = socketpair(AF_UNIX, SOCK_STREAM)

    def take(number: int, fd: int) -> None:
        assert number == 5
        os.close(fd)
        theirs.close()

    with open("/dev/null", "rb") as listener:
        theirs.send(b"0")
        fdpass.send(theirs, handshake.encode_listener(5), [listener.fileno()])
    with pytest.raises(BrokenPipeError):
        handshake.read_outcome(mine, take)
    mine.close()


def answer(data: bytes) -> Failure | None:
    mine, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    try:
        theirs.send(data)
        theirs.close()
        return handshake.read_outcome(mine)
    finally:
        mine.close()


def test_start_gate_tells_what_became_of_the_program() -> None:
    assert answer(b"0") is None
    assert answer(b"0" + handshake.encode_failure(FAILURE)) == FAILURE
    with pytest.raises(handshake.NotStarted):
        answer(b"")
    with pytest.raises(ProtocolError):
        answer(b"0" + handshake.CREATED)
    with pytest.raises(ProtocolError):
        answer(b"0" + handshake.encode_listener(3))


def test_start_of_what_is_gone(tmp_path: object) -> None:
    with pytest.raises(handshake.NotStarted):
        handshake.start(f"{tmp_path}/start.sock")
