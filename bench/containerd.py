"""Measures shimd under containerd against containerd-shim-runc-v2 with runc and with crun, in one run, alternating.

Each contender has a containerd of its own, all of the same version. Its containerd, client, shim and runtime and the
containers themselves are in a cgroup of its own, which tells what CPU time they took together, whoever waited for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from google.protobuf.any_pb2 import Any

from bench import report
from bench.measure import Row, Sample, memory_kib, summary, turns
from bench.peers import Worker
from shimd.api.containerd import runc_options_pb2
from tests.containerd import image, peers
from tests.containerd.rig import LAUNCHER, NAMESPACE, Containerd
from tests.support.bundle import make_bundle
from tests.support.leaks import cgroup_mount_points
from tests.support.rootfs import busybox_rootfs
from tests.support.session import Presence
from tests.support.specs import runc_default

RESULTS = report.ROOT / "bench" / "containerd-results.json"
MARK = "<!-- table of make bench-containerd -->"

SETTLE = 0.5  # seconds after which containerd has cleaned up behind the last container
_CGROUP = f"shimd-bench-{os.getpid()}"
_GOAL = "shimd/runc <= 0.5"
_WITHOUT_UNIFIED = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "sh")


class Sizes:
    def __init__(self, *, quick: bool) -> None:
        self.rounds = 2 if quick else 40
        self.warm_up = 1 if quick else 5
        self.batch = 8 if quick else 100
        self.batch_rounds = 1 if quick else 3
        self.idle = 4 if quick else 50
        self.stream_mib = 16 if quick else 512
        self.stream_rounds = 1 if quick else 5


class Usage:
    """A cgroup, and the CPU time of all that is in it or below: v1's cpuacct, or v2."""

    def __init__(self, name: str) -> None:
        v1 = Path("/sys/fs/cgroup/cpuacct")
        self.path = f"/{_CGROUP}/{name}"
        self._folder = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / self.path[1:]
        self._folder.mkdir(parents=True)
        self._is_v1 = v1.is_dir()

    def add(self, *pids: int) -> None:
        for pid in pids:
            (self._folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def seconds(self) -> float:
        if self._is_v1:
            return int((self._folder / "cpuacct.usage").read_text()) / 1e9
        return int((self._folder / "cpu.stat").read_text().split()[1]) / 1e6


class Contender(Containerd):
    """A containerd whose containers run on one of the runtimes."""

    def __init__(self, name: str, folder: Path, peer: peers.Peer) -> None:
        self.name = name
        self.has_daemon = name == "shimd"
        self.starter = _WITHOUT_UNIFIED if name == "crun" and os.path.ismount("/sys/fs/cgroup/unified") else ()
        folder.mkdir()
        super().__init__(folder, peer)
        self.usage = Usage(name)
        self._count = 0
        self._worker: Worker

    def __enter__(self) -> Contender:
        super().__enter__()
        assert self.process is not None
        self._worker = Worker(self.name, without_unified=bool(self.starter), environment=self.environment)
        self.usage.add(self.process.pid, self._worker.pid, *self._daemon_pids())
        return self

    def close(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.__exit__()
        super().close()

    def _daemon_pids(self) -> list[int]:
        """The daemon, its keeper and the keeper's spare process."""
        if not self.has_daemon:
            return []
        keeper = self.daemon.keeper_pid()
        children = map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split())
        return [self.daemon.pid, keeper, *(pid for pid in children if _name(pid) == "shimd:[spare]")]

    def run_command(self, *command: str, flags: Sequence[str] = ("--rm",)) -> list[str]:
        runtime = "io.containerd.shimd.v2" if self.has_daemon else "io.containerd.runc.v2"
        binary = [] if self.has_daemon else ["--runc-binary", self.name]
        name = self._new_name()
        place = ["--cgroup", f"{self.usage.path}/{name}"]
        return self.command("run", "--runtime", runtime, *binary, *place, *flags, image.NAME, name, *command)

    def _new_name(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    def run_one(self) -> Sample:
        return self.batch(1, 1)

    def batch(self, count: int, concurrency: int) -> Sample:
        commands = [self.run_command("true") for _ in range(count)]
        return self._worker.ask(do="run", commands=commands, concurrency=concurrency)

    def read(self, mib: int) -> Sample:
        """What ctr writes of a program's output."""
        copy = f"dd if=/dev/zero bs=64k count={mib * 16} 2>/dev/null"
        return self._worker.ask(do="read", command=self.run_command("sh", "-c", copy))

    def shim_part(self, bundle: Path) -> Sample:
        """A life of a task, from the shim's start to its Shutdown."""
        name = self._new_name()
        program = str(LAUNCHER) if self.has_daemon else self.peer.program("containerd-shim-runc-v2")
        where = ["-namespace", NAMESPACE, "-id", name, "-address", self.address]
        command = [program, *where, "-publish-binary", self.peer.program("containerd")]
        request = {"program": command, "id": name, "namespace": NAMESPACE, "bundle": str(bundle)}
        return self._worker.ask(do="shim", **request, options=self._options().hex())

    def _options(self) -> bytes:
        options = runc_options_pb2.Options(binary_name="" if self.has_daemon else self.name)
        return Any(type_url="containerd.runc.v1.Options", value=options.SerializeToString()).SerializeToString()

    def start_idle(self, count: int) -> None:
        commands = [self.run_command("sleep", "100000", flags=("-d",)) for _ in range(count)]
        self._worker.ask(do="run", commands=commands, concurrency=4)

    def remove_all(self) -> None:
        for name in self.ctr("containers", "ls", "-q").split():
            self.remove(name)

    def shims_kib(self) -> int:
        """Private memory of all that stays beside the containers, but containerd. The dirty part alone: whether others
        on the machine map the same files changes all the time.
        """
        pids = self._daemon_pids() or [pid for pid in self.usage.pids() if _name(pid).startswith("containerd-shim")]
        return sum(memory_kib(pid)["dirty"] for pid in pids)


def _name(pid: int) -> str:
    """As the kernel keeps it: 15 characters at most."""
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


class Bench:
    def __init__(self, contenders: list[Contender], folder: Path, sizes: Sizes) -> None:
        self.contenders = contenders
        self.sizes = sizes
        self._cpu: dict[str, list[float]] = {}  # ms of each container, by contender
        self._bundle = _bundle(folder)

    def lines(self) -> Mapping[str, Callable[[str], Row]]:
        return {
            # First, while a daemon has no room left from containers that are gone.
            "memory of shims per idle container": self.memory,
            "ctr run --rm": lambda name: self._times(name, Contender.run_one),
            "the shim's part of it": lambda name: self._times(
                name, lambda contender: contender.shim_part(self._bundle), (_GOAL,)
            ),
            "containers, 8 at a time": self.batch,
            "CPU time of a container": self.cpu,
            "output of one container": self.output,
        }

    def _times(self, name: str, operation: Callable[[Contender], Sample], budgets: tuple[str, ...] = ()) -> Row:
        samples: dict[str, list[float]] = {contender.name: [] for contender in self.contenders}
        for contender in turns(self.contenders, self.sizes.warm_up):
            operation(contender)
        for contender in turns(self.contenders, self.sizes.rounds):
            samples[contender.name].append(operation(contender).seconds * 1000)
        return Row(name, "ms", {who: summary(taken) for who, taken in samples.items()}, budgets)

    def batch(self, name: str) -> Row:
        count = self.sizes.batch
        rates: dict[str, list[float]] = {contender.name: [] for contender in self.contenders}
        for contender in turns(self.contenders, self.sizes.batch_rounds):
            before = contender.usage.seconds()
            rates[contender.name].append(count / contender.batch(count, 8).seconds)
            time.sleep(SETTLE)
            used = contender.usage.seconds() - before
            self._cpu.setdefault(contender.name, []).append(used / count * 1000)
        figures = {who: summary(taken) for who, taken in rates.items()}
        return Row(f"{count} {name}", "per second", figures, lower_is_better=False)

    def cpu(self, name: str) -> Row:
        """Of the containers of ``batch``; containerd, client, shim, runtime and the container itself."""
        return Row(name, "ms", {who: summary(taken) for who, taken in self._cpu.items()}, (_GOAL,))

    def output(self, name: str) -> Row:
        rates: dict[str, list[float]] = {contender.name: [] for contender in self.contenders}
        for contender in turns(self.contenders, self.sizes.stream_rounds):
            taken = contender.read(self.sizes.stream_mib)
            rates[contender.name].append(taken.bytes / taken.seconds / 2**20)
        figures = {who: summary(taken) for who, taken in rates.items()}
        return Row(name, "MiB/s", figures, lower_is_better=False)

    def memory(self, name: str) -> Row:
        """What they grow by; ``all`` is the sum, with what a daemon has to begin with."""
        figures = {}
        for contender in self.contenders:
            contender.batch(2 * self.sizes.warm_up, 4)  # what a daemon loads with the first is no price of the next
            time.sleep(SETTLE)
            before = contender.shims_kib()
            contender.start_idle(self.sizes.idle)
            after = contender.shims_kib()
            contender.remove_all()
            figures[contender.name] = {"median": (after - before) / self.sizes.idle, "all": float(after)}
        return Row(name, "KiB", figures, ("shimd/runc <= 0.067",))


def _bundle(folder: Path) -> Path:
    rootfs = busybox_rootfs(folder / "rootfs")
    spec = runc_default("/bin/true")
    spec["ociVersion"] = "1.0.2"  # what crun takes
    return make_bundle(folder / "bundle", spec, rootfs)


def _version(peer: peers.Peer) -> str:
    output = subprocess.run(
        [peer.program("containerd"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return output.split()[2]


def _remove_cgroups() -> None:
    """Those of Usage, and what runtimes made of the same name in other hierarchies."""
    for point in cgroup_mount_points():
        for folder, _, _ in os.walk(f"{point}/{_CGROUP}", topdown=False):
            _remove_cgroup(folder)


def _remove_cgroup(folder: str) -> None:
    """Processes that ended may be in it still: process 1 takes its time to reap them."""
    for _ in range(100):
        try:
            return os.rmdir(folder)
        except OSError:
            time.sleep(0.1)
    os.rmdir(folder)


def markdown(where: Mapping[str, str], rows: Sequence[Row]) -> str:
    lines = ["; ".join(f"{name} {value}" for name, value in where.items()) + ".", "", *report.table(rows)]
    for row in rows:
        if row.name.startswith("memory"):
            sums = (f"{who} {figures['all'] / 1024:.0f} MiB" for who, figures in row.figures.items())
            lines += ["", f"All shim processes together, with the daemon and its keeper: {', '.join(sums)}."]
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.containerd", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: proves that the benchmark works, no more")
    parser.add_argument(
        "--containerd", default="1.6", choices=peers.VERSIONS, help="version (default: %(default)s, Debian's)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the lines whose name contains TEXT")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/performance.md")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    peer = peers.find(options.containerd)
    if problem := "needs root, for containerd" if os.geteuid() else peer.missing:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        stack.enter_context(closing(Presence()))
        # Sockets and state where they are at home, on a tmpfs; the paths of sockets are short.
        folder = Path(tempfile.mkdtemp(prefix="shimd-bench-", dir="/dev/shm"))
        folder.chmod(0o711)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_remove_cgroups)
        # Debian's crun refuses the version of config.json that newer ones write.
        names = ("shimd", "crun", "runc") if peer.version == "1.6" else ("shimd", "runc")
        contenders = [Contender(name, folder / name, peer) for name in names]
        for contender in contenders:
            stack.enter_context(contender)
        where = report.machine({"containerd": _version(peer)}, quick=options.quick)
        bench = Bench(contenders, folder, Sizes(quick=options.quick))
        rows = []
        for name, measure in bench.lines().items():
            if options.only in name:
                print(f"measuring: {name}", file=sys.stderr)
                rows.append(measure(name))
    report.write(options.results, where, rows, {})
    text = markdown(where, rows)
    print(text)
    if options.docs:
        report.update_document(text, MARK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
