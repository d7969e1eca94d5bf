"""The ways to a containerd other than its ttrpc socket, and the choice between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from shimd.api.containerd import forward_pb2
from shimd.events import forward
from shimd.events.forward import Addresses, Forwarder
from shimd.rpc import status
from shimd.rpc.status import StatusError
from tests.support.fake_containerd import FakeContainerd

REQUEST = forward_pb2.ForwardRequest(envelope=forward_pb2.Envelope(namespace="n", topic="/tasks/oom"))
REQUEST.envelope.event.type_url = "containerd.events.TaskOOM"
REQUEST.envelope.event.value = b"\x0a\x02c1"
DATA = REQUEST.SerializeToString()

Code = Callable[[], grpc.StatusCode]


@contextlib.asynccontextmanager
async def grpc_containerd(path: Path, code: Code = lambda: grpc.StatusCode.OK) -> AsyncIterator[list[bytes]]:
    """Answers with the code that is wanted at the time; yields what it took."""
    taken: list[bytes] = []

    async def serve(request: bytes, context: Any) -> bytes:
        if code() is not grpc.StatusCode.OK:
            await context.abort(code(), "no")
        taken.append(request)
        return b""

    handler = grpc.unary_unary_rpc_method_handler(serve)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("containerd.services.events.v1.Events", {"Forward": handler}),)
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    yield taken
    await server.stop(None)


@contextlib.asynccontextmanager
async def forwarding(ttrpc: object = "", grpc_: object = "", binary: object = "") -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(Addresses(str(ttrpc), str(grpc_), str(binary)))
    yield forwarder
    await forwarder.close()


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def test_over_grpc(tmp_path: Path) -> None:
    async with grpc_containerd(tmp_path / "grpc") as taken, forwarding(grpc_=tmp_path / "grpc") as forwarder:
        for _ in range(3):
            await forwarder.forward(DATA)
        assert taken == [DATA] * 3


async def test_grpc_containerd_that_goes_and_comes(tmp_path: Path) -> None:
    async with forwarding(grpc_=f"unix://{tmp_path}/grpc") as forwarder:
        for _ in range(2):
            with pytest.raises(StatusError) as error:
                await forwarder.forward(DATA)
            assert error.value.code == status.UNAVAILABLE
            async with grpc_containerd(tmp_path / "grpc") as taken:
                await forwarder.forward(DATA)
                assert taken == [DATA]


async def test_refusal_over_grpc(tmp_path: Path) -> None:
    async with grpc_containerd(tmp_path / "grpc", lambda: grpc.StatusCode.INVALID_ARGUMENT):
        async with forwarding(grpc_=tmp_path / "grpc") as forwarder:
            with pytest.raises(StatusError, match="no") as error:
                await forwarder.forward(DATA)
            assert error.value.code == status.INVALID_ARGUMENT


async def test_ttrpc_comes_first(tmp_path: Path) -> None:
    with FakeContainerd(tmp_path) as containerd:
        containerd.start()
        async with grpc_containerd(tmp_path / "grpc") as taken:
            async with forwarding(containerd.socket, tmp_path / "grpc", "/bin/false") as forwarder:
                await forwarder.forward(DATA)
        assert (len(containerd.events()), taken) == (1, [])


async def test_grpc_where_nobody_listens_for_ttrpc(tmp_path: Path) -> None:
    with FakeContainerd(tmp_path) as containerd:
        async with grpc_containerd(tmp_path / "grpc") as taken:
            async with forwarding(containerd.socket, tmp_path / "grpc") as forwarder:
                await forwarder.forward(DATA)
                containerd.start()
                await forwarder.forward(DATA)
        assert (len(containerd.events()), taken) == (1, [DATA])


async def test_grpc_where_ttrpc_has_no_such_service(tmp_path: Path) -> None:
    with FakeContainerd(tmp_path) as containerd:
        containerd.start(f"refuse:{status.UNIMPLEMENTED}", "ok")
        async with grpc_containerd(tmp_path / "grpc") as taken:
            async with forwarding(containerd.socket, tmp_path / "grpc") as forwarder:
                await forwarder.forward(DATA)
                await forwarder.forward(DATA)
        assert (containerd.events(), taken) == ([], [DATA] * 2)


async def test_other_failures_are_no_reason_to_change_the_way(tmp_path: Path) -> None:
    """It may have got the event already."""
    with FakeContainerd(tmp_path) as containerd:
        containerd.start("lost", "ok")
        async with grpc_containerd(tmp_path / "grpc") as taken:
            async with forwarding(containerd.socket, tmp_path / "grpc") as forwarder:
                with pytest.raises(StatusError) as error:
                    await forwarder.forward(DATA)
                assert error.value.code == status.UNAVAILABLE
                await forwarder.forward(DATA)
        assert (len(containerd.events()), taken) == (2, [])


async def test_program(tmp_path: Path) -> None:
    binary = program(tmp_path / "containerd", f'printf "%s\\n" "$@" >{tmp_path}/arguments; cat >{tmp_path}/stdin')
    async with grpc_containerd(tmp_path / "grpc", lambda: grpc.StatusCode.UNIMPLEMENTED):
        async with forwarding(grpc_=f"unix://{tmp_path}/grpc", binary=binary) as forwarder:
            await forwarder.forward(DATA)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["--address", f"{tmp_path}/grpc", "publish", "--topic", "/tasks/oom", "--namespace", "n"]
    assert (tmp_path / "stdin").read_bytes() == REQUEST.envelope.event.SerializeToString()


async def test_program_is_not_run_while_containerd_is_away(tmp_path: Path) -> None:
    binary = program(tmp_path / "containerd", f"touch {tmp_path}/ran")
    async with forwarding(tmp_path / "nowhere", binary=binary) as forwarder:
        with pytest.raises(StatusError) as error:
            await forwarder.forward(DATA)
        assert error.value.code == status.UNAVAILABLE
    assert not (tmp_path / "ran").exists()


async def test_program_that_fails(tmp_path: Path) -> None:
    binary = program(tmp_path / "containerd", "cat >/dev/null; echo containerd: no such topic >&2; exit 3")
    async with forwarding(binary=binary) as forwarder:
        with pytest.raises(StatusError, match="publish: containerd: no such topic") as error:
            await forwarder.forward(DATA)
        assert error.value.code == status.UNKNOWN


async def test_program_that_reads_nothing(tmp_path: Path) -> None:
    async with forwarding(binary=program(tmp_path / "containerd", "exit 0")) as forwarder:
        await forwarder.forward(DATA)


async def test_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "TIMEOUT", 0.1)
    async with forwarding(binary=program(tmp_path / "containerd", "exec sleep 1000")) as forwarder:
        with pytest.raises(StatusError) as error:
            await forwarder.forward(DATA)
        assert error.value.code == status.DEADLINE_EXCEEDED


async def test_program_that_is_cut_short(tmp_path: Path) -> None:
    binary = program(tmp_path / "containerd", f"echo $$ >{tmp_path}/pid; exec sleep 1000")
    async with forwarding(binary=binary) as forwarder:
        task = asyncio.create_task(forwarder.forward(DATA))
        async with asyncio.timeout(20):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


@pytest.mark.parametrize("binary", ["", "/nonexistent/containerd"])
async def test_no_way(binary: str) -> None:
    async with forwarding(binary=binary) as forwarder:
        with pytest.raises(StatusError) as error:
            await forwarder.forward(DATA)
        assert error.value.code == (status.UNAVAILABLE if binary else status.UNIMPLEMENTED)
