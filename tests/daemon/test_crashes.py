"""The daemon is killed at any moment of any call, again and again: no exit code is lost, and nothing is left."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.daemon.boxes import Box, shell
from tests.support.daemon import Daemon
from tests.support.specs import runc_default

CRASHES = 15
AT_ONCE = 6
PAUSES = (0.02, 0.4)  # seconds that a daemon lives after it was ready
CODES = range(3, 93)


class Scheduler:
    """Has containers live, one after the other. What it does not know after a crash, it asks the next daemon."""

    def __init__(self, daemon: Daemon, serving: threading.Event, name: str, bundles: dict[int, Path]) -> None:
        self.lives = 0
        self.interrupted = 0
        self._daemon = daemon
        self._serving = serving
        self._name = name
        self._bundles = bundles

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            code = CODES[self.lives % len(CODES)]
            self._one_life(f"{self._name}-{self.lives}", code)
            self.lives += 1

    def _one_life(self, container_id: str, code: int) -> None:
        known: dict[str, int] = {}
        while True:
            assert self._serving.wait(30)
            try:
                with self._daemon.client() as client:
                    go_on(Box(client, container_id, self._bundles[code]), code, known)
                    return
            except grpc.RpcError as error:
                if _code(error) != grpc.StatusCode.UNAVAILABLE:
                    raise
                self.interrupted += 1


def go_on(box: Box, code: int, known: dict[str, int]) -> None:
    """From wherever it is to its end; ``known``: the exit codes so far, of init ("") and of the exec ("e")."""
    status = _ask(box)
    if not status and "" in known:
        return  # the delete has been carried out
    if not status:
        box.make()
        status = "CREATED"
    if status == "CREATED":
        _start(box)
    if status != "STOPPED" and "e" not in known:
        if not _ask(box, "e"):
            box.exec("e", "/bin/sh", "-c", f"exit {code + 1}")
            box.start("e")
        known["e"] = box.wait("e")
        assert known["e"] == code + 1
    _end(box)
    known[""] = box.wait()
    assert known[""] == code
    box.delete()


def _ask(box: Box, exec_id: str = "") -> str:
    """The status, "" when there is no such thing."""
    try:
        return box.status(exec_id)
    except grpc.RpcError as error:
        if _code(error) != grpc.StatusCode.NOT_FOUND:
            raise
        return ""


def _start(box: Box) -> None:
    """A former daemon may have let it go."""
    try:
        box.start()
    except grpc.RpcError as error:
        if _code(error) != grpc.StatusCode.FAILED_PRECONDITION or box.status() == "CREATED":
            raise


def _end(box: Box) -> None:
    """A former daemon may have done it."""
    try:
        box.kill(signal.SIGUSR1)
    except grpc.RpcError as error:
        if _code(error) != grpc.StatusCode.NOT_FOUND:
            raise


def _code(error: grpc.RpcError) -> Any:
    found: Any = error  # also a grpc.Call, which the stubs do not say
    return found.code()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_exit_code_is_lost(place: Path, bundle: Callable[..., Path], busybox: Path, seed: int) -> None:
    generator = random.Random(seed)
    script = "trap 'exit {}' USR1; while :; do sleep 0.01; done"
    bundles = {code: bundle(runc_default(*shell(script.format(code))), rootfs=busybox) for code in CODES}
    over, serving = threading.Event(), threading.Event()
    with Daemon(place / "daemon") as daemon, ThreadPoolExecutor(AT_ONCE) as pool:
        schedulers = [Scheduler(daemon, serving, f"crash-{number}", bundles) for number in range(AT_ONCE)]
        runs = [pool.submit(scheduler.run, over) for scheduler in schedulers]
        try:
            for _ in range(CRASHES):
                serving.set()
                over.wait(generator.uniform(*PAUSES))
                serving.clear()
                daemon.kill()
                daemon.start()
        finally:
            over.set()
            serving.set()
        for run in runs:
            run.result(timeout=60)
        assert all(scheduler.lives and scheduler.interrupted for scheduler in schedulers)
