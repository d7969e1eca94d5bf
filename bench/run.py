"""Measures shimd against Debian's runc and crun in one run, alternating, and reports medians and ratios.

Every round measures each contender once before the next round begins, so that what else the machine does meets all of
them. What is compared is what a caller waits for: shimd is called over gRPC from this Python process, runc and crun are
started with posix_spawn by a small worker.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench import report
from bench.measure import Row, Sample, summary, turns
from bench.peers import Peer
from bench.shimd_side import Shimd
from tests.support.bundle import make_bundle, remove_tree
from tests.support.daemon import Daemon
from tests.support.rootfs import busybox_rootfs
from tests.support.session import Presence

Contender = Shimd | Peer
Operation = Callable[[], Sample]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: proves that the benchmark works, no more")
    parser.add_argument("--rounds", type=int, help="measurements of each single operation")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the lines whose name contains TEXT")
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/performance.md")
    return parser.parse_args(arguments)


class Sizes:
    """How much is measured."""

    def __init__(self, *, quick: bool, rounds: int | None) -> None:
        self.rounds = rounds or (3 if quick else 60)
        self.warm_up = 1 if quick else 5
        self.batch = 10 if quick else 200
        self.batch_rounds = 1 if quick else 3
        self.idle = 5 if quick else 100
        self.stream_mib = 32 if quick else 1024
        self.stream_rounds = 1 if quick else 5


class Bench:
    """The contenders, the bundles that they run, and one method per group of lines."""

    def __init__(self, folder: Path, shimd: Shimd, shimrun: Peer, peers: list[Peer], sizes: Sizes) -> None:
        self.shimd = shimd
        self.shimrun = shimrun
        self.peers = peers
        self.sizes = sizes
        self._folder = folder
        rootfs = busybox_rootfs(folder / "rootfs")
        self.true = _bundle(folder / "true", rootfs, "/bin/true")
        self.idle = _bundle(folder / "idle", rootfs, "/bin/sleep", "100000")
        copy = f"dd if=/dev/zero bs=64k count={sizes.stream_mib * 16} 2>/dev/null"
        self.stream = _bundle(folder / "stream", rootfs, "/bin/sh", "-c", copy)

    def lines(self) -> Mapping[str, Callable[[str], Row]]:
        return {
            "whole life, one call": self.one_call,
            "create, start, wait, delete": self.life,
            "exec": self.execute,
            "exec, one call": self.execute_one_call,
            "200 containers, 1 at a time": lambda name: self.batch(name, 1),
            "200 containers, 4 at a time": lambda name: self.batch(name, 4),
            "200 containers, 16 at a time": lambda name: self.batch(name, 16),
            "output of one container": self.output,
            "memory per idle container": self.memory,
            "shimrun run": self.command_run,
            "shimrun state": self.command_state,
        }

    def one_call(self, name: str) -> Row:
        """Run against `runc run` and `crun run`."""
        operations: dict[str, Operation] = {c.name: _bind(c.run, self.true) for c in self.contenders()}
        return self._times(name, operations, ("shimd/crun <= 1.0",))

    def life(self, name: str) -> Row:
        operations: dict[str, Operation] = {c.name: _bind(c.life, self.true) for c in self.contenders()}
        # The budgets of this line are set against the others' quickest way, which is one call.
        operations |= {f"{peer.name} run": _bind(peer.run, self.true) for peer in self.peers}
        return self._times(name, operations, ("shimd/crun run <= 1.3", "shimd/runc run <= 0.4"))

    def execute(self, name: str) -> Row:
        return self._execute(name, self.shimd.execute)

    def execute_one_call(self, name: str) -> Row:
        return self._execute(name, self.shimd.attach_execute)

    def _execute(self, name: str, ours: Callable[[str], Sample]) -> Row:
        operations: dict[str, Operation] = {"shimd": _bind(ours, self.shimd.start_idle(self.idle))}
        operations |= {peer.name: _bind(peer.execute, peer.start_idle(self.idle)) for peer in self.peers}
        try:
            return self._times(name, operations)
        finally:
            self.shimd.stop_idle()

    def batch(self, name: str, concurrency: int) -> Row:
        count = self.sizes.batch
        samples: dict[str, list[Sample]] = {c.name: [] for c in self.contenders()}
        for contender in turns(self.contenders(), self.sizes.batch_rounds):
            done = contender.batch(self.true, count=count, concurrency=concurrency)
            samples[contender.name].append(done)
        figures = {
            who: summary(count / s.seconds for s in taken) | {"cpu_ms": _mean_cpu_ms(taken) / count}
            for who, taken in samples.items()
        }
        return Row(name.replace("200", str(count)), "per second", figures, lower_is_better=False)

    def output(self, name: str) -> Row:
        samples: dict[str, list[Sample]] = {c.name: [] for c in self.contenders()}
        for contender in turns(self.contenders(), self.sizes.stream_rounds):
            samples[contender.name].append(contender.read(self.stream))
        figures = {who: summary(s.bytes / s.seconds / 2**20 for s in taken) for who, taken in samples.items()}
        return Row(name, "MiB/s", figures, lower_is_better=False)

    def memory(self, name: str) -> Row:
        """Of a fresh daemon and its keeper, beside the container's own process: what the first hundred cost."""
        with Daemon(self._folder / "idle-daemon") as daemon, closing(Shimd(self._folder, daemon)) as fresh:
            for _ in range(self.sizes.warm_up):
                fresh.run(self.true)
            before = fresh.memory()
            for _ in range(self.sizes.idle):
                fresh.start_idle(self.idle)
            after = fresh.memory()
        each = {kind: (after[kind] - before[kind]) / self.sizes.idle for kind in after}
        figures = {"median": each["pss"], "private": each["private"], "base_pss": float(before["pss"])}
        return Row(name, "KiB", {"shimd": figures}, ("shimd <= 205",))

    def command_run(self, name: str) -> Row:
        operations: dict[str, Operation] = {"shimd": _bind(self.shimrun.run, self.true)}
        operations |= {peer.name: _bind(peer.run, self.true) for peer in self.peers}
        return self._times(name, operations, ("shimd/runc <= 1.5",))

    def command_state(self, name: str) -> Row:
        programs = {"shimd": self.shimrun} | {peer.name: peer for peer in self.peers}
        operations: dict[str, Operation] = {
            who: _bind(program.state, program.start_idle(self.idle)) for who, program in programs.items()
        }
        return self._times(name, operations, ("shimd <= 40",))

    def phases(self) -> dict[str, dict[str, float]]:
        """How long each step took inside the daemon, in ms, over all containers of one call."""
        return {name: summary(s * 1000 for s in taken) for name, taken in self.shimd.phases.items()}

    def contenders(self) -> list[Contender]:
        return [self.shimd, *self.peers]

    def _times(self, name: str, operations: Mapping[str, Operation], budgets: tuple[str, ...] = ()) -> Row:
        for operation in operations.values():
            for _ in range(self.sizes.warm_up):
                operation()
        samples: dict[str, list[Sample]] = {who: [] for who in operations}
        for who in turns(operations, self.sizes.rounds):
            samples[who].append(operations[who]())
        figures = {
            who: summary(s.seconds * 1000 for s in taken) | {"cpu_ms": _mean_cpu_ms(taken)}
            for who, taken in samples.items()
        }
        return Row(name, "ms", figures, budgets)


def _bind(operation: Callable[[Any], Sample], argument: object) -> Operation:
    return lambda: operation(argument)


def _mean_cpu_ms(samples: list[Sample]) -> float:
    return sum(s.cpu for s in samples) / len(samples) * 1000


def _bundle(folder: Path, rootfs: Path, *command: str) -> Path:
    """`runc spec`'s own document, without its terminal."""
    folder.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(folder)], check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": list(command)}
    return make_bundle(folder, spec, rootfs)


def main() -> int:
    options = parse(sys.argv[1:])
    if os.geteuid() != 0:
        print("bench: needs root, for namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    sizes = Sizes(quick=options.quick, rounds=options.rounds)
    folder = Path(tempfile.mkdtemp(prefix="shimd-bench-"))
    folder.chmod(0o711)
    # What /run is where these runtimes are at home: the creation of a file must not be the price of a disk's.
    states = Path(tempfile.mkdtemp(prefix="shimd-bench-", dir="/dev/shm"))
    with ExitStack() as stack:
        stack.enter_context(closing(Presence()))  # tests under way beside this do not take its cgroups for theirs
        stack.callback(remove_tree, folder)
        stack.callback(remove_tree, states)
        daemon = stack.enter_context(Daemon(states / "daemon"))
        shimd = Shimd(folder, daemon)
        stack.callback(shimd.close)
        peers = [stack.enter_context(Peer(name, states)) for name in ("crun", "runc")]
        shimrun = stack.enter_context(Peer(str(Path(sys.executable).parent / "shimrun"), states))
        bench = Bench(folder, shimd, shimrun, peers, sizes)
        machine = report.machine({c.name: c.version() for c in bench.contenders()}, quick=options.quick)
        gc.freeze()
        rows = []
        for name, measure in bench.lines().items():
            if options.only in name:
                print(f"measuring: {name}", file=sys.stderr)
                rows.append(measure(name))
        phases = bench.phases()
    report.write(options.results, machine, rows, phases)
    text = report.markdown(machine, rows, phases)
    print(text)
    if options.docs:
        report.update_document(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
