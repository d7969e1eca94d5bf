"""Run and Attach of shimd.v1: a whole life in one call, with its output and input."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shimd.api.v1 import runtime_pb2 as api
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.support import wait
from tests.support.client import Client
from tests.support.specs import runc_default


def _kinds(events: list[api.ProcessEvent]) -> list[str]:
    """Without repetitions of output."""
    kinds = [event.WhichOneof("event") for event in events]
    return [str(kind) for kind, _ in itertools.groupby(kinds)]


def _output(events: list[api.ProcessEvent], stream: int = api.Output.STDOUT) -> bytes:
    return b"".join(e.output.data for e in events if e.HasField("output") and e.output.stream == stream)


class Conversation:
    """A call of Attach: what is put in is sent while what comes is read."""

    def __init__(self, client: Client, first: api.AttachRequest) -> None:
        self._requests: Any = _Queue(first)
        self._events = client.runtime.Attach(iter(self._requests))
        self.seen: list[api.ProcessEvent] = []

    def send(self, **fields: Any) -> None:
        self._requests.put(api.AttachRequest(**fields))

    def until(self, marker: bytes) -> bytes:
        while marker not in _output(self.seen):
            self.seen.append(next(self._events))
        return _output(self.seen)

    def finish(self) -> api.Exited:
        self.seen.extend(self._events)
        assert self.seen[-1].HasField("exited")
        return self.seen[-1].exited

    def cancel(self) -> None:
        self._events.cancel()
        self._requests.close()


class _Queue:
    def __init__(self, first: api.AttachRequest) -> None:
        import queue

        self._queue: queue.SimpleQueue[api.AttachRequest | None] = queue.SimpleQueue()
        self._queue.put(first)

    def put(self, request: api.AttachRequest) -> None:
        self._queue.put(request)

    def close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[api.AttachRequest]:
        while (request := self._queue.get()) is not None:
            yield request


@pytest.fixture
def converse(client: Client) -> Iterator[Callable[..., Conversation]]:
    made: list[Conversation] = []

    def begin(**first: Any) -> Conversation:
        made.append(Conversation(client, api.AttachRequest(**first)))
        return made[-1]

    yield begin
    for conversation in made:
        conversation.cancel()


def _terminal(*args: str) -> dict[str, Any]:
    return runc_default(*args, terminal=True)


def test_run(box: MakeBox, client: Client) -> None:
    b = box(*shell("echo out; echo bad >&2; exit 3"))
    events = list(client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle))))
    assert _kinds(events) == ["created", "started", "output", "exited"]
    assert events[0].created.id == b.id
    assert events[1].started.pid == events[0].created.pid
    assert _output(events) == b"out\n"
    assert _output(events, api.Output.STDERR) == b"bad\n"
    exited = events[-1].exited
    assert exited.exit_status == 3
    assert exited.max_rss_bytes > 0
    assert {"cgroup", "compile", "launch"} <= {phase.name for phase in exited.phases}
    with refused("NOT_FOUND"):
        b.state()
    assert b.topics() == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_run_makes_up_an_id(box: MakeBox, client: Client) -> None:
    b = box("true")
    ids = {next(iter(client.runtime.Run(api.RunRequest(bundle=str(b.bundle))))).created.id for _ in range(3)}
    assert len(ids) == 3
    _no_containers(client)


def _no_containers(client: Client) -> None:
    """The runs above were abandoned: each is over when its delete event is out."""
    deletions = client.runtime.Events(api.EventsRequest(since=1, topics=["/tasks/delete"]))
    while client.runtime.List(api.ListRequest()).containers:
        next(deletions)
    deletions.cancel()


def test_run_of_an_inline_spec(client: Client, busybox: Path) -> None:
    spec = json.dumps(runc_default("echo", "inline", rootfs=str(busybox))).encode()
    events = list(client.runtime.Run(api.RunRequest(spec=spec)))
    assert _output(events) == b"inline\n"


def test_run_that_fails(box: MakeBox, client: Client) -> None:
    b = box("/no/such/program")
    with refused("UNKNOWN", "/no/such/program"):
        list(client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle))))
    assert b.topics() == []


def test_run_of_an_id_in_use(box: MakeBox, client: Client) -> None:
    b = box("sleep", "1000")
    b.make()
    with refused("ALREADY_EXISTS"):
        list(client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle))))
    assert b.status() == "CREATED"


def test_abandoned_run_is_ended_and_deleted(box: MakeBox, client: Client) -> None:
    b = box("sleep", "1000")
    events = client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle)))
    assert next(events).HasField("created")
    assert next(events).HasField("started")
    events.cancel()
    _deleted(b)
    assert b.events()[-1][1].exit_status == 137


def _deleted(b: Box) -> None:
    for event in b.client.runtime.Events(api.EventsRequest(since=1, ids=[b.id], topics=["/tasks/delete"])):
        assert event.topic == "/tasks/delete"
        return


def test_run_that_is_kept(box: MakeBox, client: Client) -> None:
    b = box(*shell("exit 3"))
    list(client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle), keep=True)))
    assert b.status() == "STOPPED"
    assert b.delete().exit_status == 3


def test_kept_run_goes_on_without_its_caller(box: MakeBox, client: Client) -> None:
    b = box("sleep", "1000")
    events = client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle), keep=True))
    next(events)
    next(events)
    events.cancel()
    assert b.status() == "RUNNING"


def test_much_output_arrives_whole_and_in_order(box: MakeBox, client: Client) -> None:
    b = box(*shell("seq 1 200000"))
    events = list(client.runtime.Run(api.RunRequest(bundle=str(b.bundle))))
    assert _output(events) == b"".join(b"%d\n" % number for number in range(1, 200001))


def test_output_just_before_the_end_is_not_lost(box: MakeBox, client: Client) -> None:
    b = box(*shell("dd if=/dev/zero bs=65536 count=1 2>/dev/null; kill -9 $$; exit 0"))
    for _ in range(5):
        events = list(client.runtime.Run(api.RunRequest(bundle=str(b.bundle))))
        assert len(_output(events)) == 65536


def test_slow_reader_holds_the_program_back(box: MakeBox, client: Client) -> None:
    b = box(*shell("dd if=/dev/zero bs=1M count=64 2>/dev/null; echo done >&2"))
    events = client.runtime.Run(api.RunRequest(id=b.id, bundle=str(b.bundle)))
    assert next(events).HasField("created")
    assert b.status() == "RUNNING"
    rest = list(events)
    assert len(_output(rest)) == 64 << 20
    assert _output(rest, api.Output.STDERR) == b"done\n"


def test_input(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("cat")
    call = converse(run=api.RunRequest(id=b.id, bundle=str(b.bundle), interactive=True))
    call.send(stdin=b"one\n")
    call.until(b"one\n")
    call.send(stdin=b"two\n")
    call.send(close_stdin=api.CloseStdin())
    assert call.finish().exit_status == 0
    assert _output(call.seen) == b"one\ntwo\n"


def test_much_input(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("wc", "-c")
    call = converse(run=api.RunRequest(bundle=str(b.bundle), interactive=True))
    for _ in range(100):
        call.send(stdin=bytes(100_000))
    call.send(close_stdin=api.CloseStdin())
    call.finish()
    assert _output(call.seen) == b"10000000\n"


def test_input_that_nobody_reads_is_dropped(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(*shell("exec 0<&-; echo closed; read line < /dev/zero"))
    call = converse(run=api.RunRequest(id=b.id, bundle=str(b.bundle), interactive=True))
    call.until(b"closed\n")
    for _ in range(10):
        call.send(stdin=bytes(100_000))
    call.send(signal=int(signal.SIGKILL))
    assert call.finish().exit_status == 137


def test_without_input_stdin_is_empty(box: MakeBox, client: Client) -> None:
    b = box("wc", "-c")
    assert _output(list(client.runtime.Run(api.RunRequest(bundle=str(b.bundle))))) == b"0\n"


def test_terminal(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(spec=_terminal(*shell("tty; stty size; read line; echo got $line; stty size")))
    window = api.WindowSize(width=100, height=33)
    call = converse(run=api.RunRequest(id=b.id, bundle=str(b.bundle), interactive=True, window=window))
    assert b"/dev/pts/0\r\n33 100\r\n" in call.until(b"33 100\r\n")
    call.send(resize=api.WindowSize(width=90, height=44))
    call.send(stdin=b"hello\n")
    assert call.finish().exit_status == 0
    assert b"got hello\r\n44 90\r\n" in _output(call.seen)
    assert call.seen[0].created.terminal


def test_terminal_interrupt(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(spec=_terminal(*shell("trap 'exit 42' INT; echo ready; while :; do sleep 0.01; done")))
    call = converse(run=api.RunRequest(bundle=str(b.bundle), interactive=True))
    call.until(b"ready")
    call.send(stdin=b"\x03")
    assert call.finish().exit_status == 42


def test_signal(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(*shell("trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done"))
    call = converse(run=api.RunRequest(bundle=str(b.bundle)))
    call.until(b"ready")
    call.send(signal=int(signal.SIGUSR1))
    assert call.finish().exit_status == 5


def test_exec(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    process = {"args": shell("cat; exit 4"), "cwd": "/", "env": ["PATH=/bin"]}
    call = converse(exec=api.ExecRequest(id=b.id, exec_id="e1", process=json.dumps(process).encode(), interactive=True))
    call.send(stdin=b"in\n")
    call.send(close_stdin=api.CloseStdin())
    assert call.finish().exit_status == 4
    assert _kinds(call.seen) == ["created", "started", "output", "exited"]
    assert (call.seen[0].created.id, call.seen[0].created.exec_id) == (b.id, "e1")
    with refused("NOT_FOUND"):
        b.state("e1")
    assert b.status() == "RUNNING"


def test_exec_with_terminal(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    process = {"terminal": True, "args": shell("tty && echo yes"), "cwd": "/", "env": ["PATH=/bin"]}
    call = converse(exec=api.ExecRequest(id=b.id, process=json.dumps(process).encode()))
    assert call.finish().exit_status == 0
    assert b"/dev/pts/0\r\nyes\r\n" in _output(call.seen)


def test_exec_does_not_wait_for_what_it_left_behind(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    process = {"args": shell("sleep 1000 & echo begun"), "cwd": "/", "env": ["PATH=/bin"]}
    call = converse(exec=api.ExecRequest(id=b.id, process=json.dumps(process).encode()))
    assert call.finish().exit_status == 0
    assert _output(call.seen) == b"begun\n"


def test_abandoned_exec_is_ended(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    b.make()
    b.start()
    process = {"args": ["sleep", "999"], "cwd": "/", "env": ["PATH=/bin"]}
    call = converse(exec=api.ExecRequest(id=b.id, exec_id="e1", process=json.dumps(process).encode()))
    call.seen.append(next(call._events))
    pid = call.seen[0].created.pid
    call.cancel()
    wait.process_gone(pid)
    assert b.status() == "RUNNING"


def test_attach_to_a_container_made_by_the_task_api(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(*shell("read a; echo first $a; read a; echo second $a; exit 8"))
    b.make(stdin="attach:", stdout="attach:", stderr="attach:")
    b.start()
    first = converse(target=api.AttachTarget(id=b.id))
    first.send(stdin=b"x\n")
    first.until(b"first x\n")
    first.cancel()
    second = converse(target=api.AttachTarget(id=b.id))
    second.send(stdin=b"y\n")
    assert second.finish().exit_status == 8
    assert _output(second.seen) == b"second y\n"
    assert b.status() == "STOPPED"


def test_output_of_the_unattached_is_kept_in_part(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box(*shell("seq 1 100000"))
    b.make(stdout="attach:")
    b.start()
    assert b.wait() == 0
    call = converse(target=api.AttachTarget(id=b.id))
    call.finish()
    whole = b"".join(b"%d\n" % number for number in range(1, 100001))
    kept = _output(call.seen)
    assert whole.endswith(kept)
    assert 0 < len(kept) <= 64 * 1024
    assert sum(e.output.dropped for e in call.seen) == len(whole) - len(kept)


def test_attach_to_streams_that_are_elsewhere(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    b.make()
    with refused("FAILED_PRECONDITION", "not held by the daemon"):
        converse(target=api.AttachTarget(id=b.id)).finish()


def test_attach_without_a_target(client: Client) -> None:
    with refused("INVALID_ARGUMENT", "first message"):
        list(client.runtime.Attach(iter([api.AttachRequest(stdin=b"x")])))
    with refused("INVALID_ARGUMENT", "no message"):
        list(client.runtime.Attach(iter([])))


def test_bad_message_in_the_middle_ends_the_call(box: MakeBox, converse: Callable[..., Conversation]) -> None:
    b = box("sleep", "1000")
    call = converse(run=api.RunRequest(id=b.id, bundle=str(b.bundle)))
    call.send(run=api.RunRequest())
    with pytest.raises(grpc.RpcError) as caught:
        call.finish()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    _deleted(b)
