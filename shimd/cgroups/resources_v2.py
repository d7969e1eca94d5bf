"""Resources as writes to the files of cgroup v2, with the conversions that OCI's v1-shaped numbers need. Pure."""

from __future__ import annotations

import math
from errno import ENOENT

from shimd.cgroups.files import Write
from shimd.cgroups.resources_v1 import UNLIMITED, pids, rdma
from shimd.errors import InvalidSpec, Problem
from shimd.oci.model import BlockIo, Cpu, HugepageLimit, Memory, Pairs, Resources
from shimd.typed import Iterable

_DEFAULT_PERIOD = 100000


def writes(resources: Resources, *, bfq: bool = False) -> list[Write]:
    """What to write, in order; ``unified`` is not among it. ``bfq``: the cgroup has io.bfq.weight. Raises
    InvalidSpec.
    """
    return [
        *pids(resources.pids),
        *memory(resources.memory),
        *block_io(resources.block_io, bfq=bfq),
        *cpu(resources.cpu._replace(shares=None) if makes_idle(resources.unified) else resources.cpu),
        *cpuset(resources.cpu),
        *hugetlb(resources.hugepage_limits),
        *rdma(resources.rdma.items()),
    ]


def needs_domain(resources: Resources) -> bool:
    """Whether a limit is asked that a threaded cgroup cannot have (cgroups(7): only cpu, cpuset, pids and
    perf_event are threaded).
    """
    return bool(
        memory(resources.memory)
        or block_io(resources.block_io, bfq=False)
        or hugetlb(resources.hugepage_limits)
        or resources.rdma
    )


def _invalid(pointer: str, text: str) -> InvalidSpec:
    return InvalidSpec([Problem(f"/linux/resources/{pointer}", text)])


def weight_of_shares(shares: int) -> int:
    """cpu.weight for v1 shares: a curve through (2, 1), (1024, 100) and (262144, 10000) that runc and crun share; 0
    stays 0 (unset).
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight(blkio_weight: int) -> int:
    """io.weight (1..10000) for a v1 weight (10..1000); 0 stays 0 (unset)."""
    return 1 + (blkio_weight - 10) * 9999 // 990 if blkio_weight else 0


def swap_limit(swap: int, limit: int) -> int | None:
    """memory.swap.max for OCI's sum of memory and swap; UNLIMITED for max, None: leave it alone. Raises InvalidSpec."""
    if limit == UNLIMITED and swap == 0:
        return UNLIMITED  # v1 lifts both limits then
    if swap == 0:
        return None
    if swap == UNLIMITED or limit == UNLIMITED:
        return swap
    if limit == 0:
        raise _invalid("memory/swap", "unable to set swap limit without memory limit")
    if limit < 0:
        raise _invalid("memory/limit", f"invalid memory value: {limit}")
    if swap < limit:
        raise _invalid("memory/swap", "memory+swap limit should be >= memory limit")
    return swap - limit


def _number(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


def memory(wanted: Memory) -> list[Write]:
    limit = wanted.limit or 0
    writes = []
    swap = swap_limit(wanted.swap or 0, limit)
    if swap is not None:
        # Without swap accounting the file is missing, and neither "no limit" nor "no swap" asks for anything then.
        harmless = (ENOENT,) if swap in (0, UNLIMITED) else ()
        writes.append(Write("memory.swap.max", _number(swap), ignore=harmless))
    if limit:
        writes.append(Write("memory.max", _number(limit)))
    if wanted.reservation:
        writes.append(Write("memory.low", _number(wanted.reservation)))
    return writes


def cpu(wanted: Cpu) -> list[Write]:
    if wanted.realtime_runtime or wanted.realtime_period:
        raise _invalid("cpu", "realtime limits are not available on cgroup v2")
    writes = []
    if wanted.idle is not None:
        writes.append(Write("cpu.idle", str(wanted.idle)))
    if wanted.shares and wanted.idle != 1:  # an idle group has a fixed weight and refuses another
        writes.append(Write("cpu.weight", str(weight_of_shares(wanted.shares))))
    coupled = bool(wanted.quota or wanted.period)
    if wanted.burst is not None:
        # checked against the quota in force: a larger one has to follow the new quota
        writes.append(Write("cpu.max.burst", str(wanted.burst), retry=coupled))
    if coupled:
        quota = wanted.quota or 0
        writes.append(Write("cpu.max", f"{quota if quota > 0 else 'max'} {wanted.period or _DEFAULT_PERIOD}"))
    return writes


def cpuset(wanted: Cpu) -> list[Write]:
    writes = []
    if wanted.cpus:
        writes.append(Write("cpuset.cpus", wanted.cpus))
    if wanted.mems:
        writes.append(Write("cpuset.mems", wanted.mems))
    return writes


def block_io(wanted: BlockIo, *, bfq: bool) -> list[Write]:
    writes = []
    if wanted.weight:
        writes.append(
            Write("io.bfq.weight", str(wanted.weight)) if bfq else Write("io.weight", str(io_weight(wanted.weight)))
        )
    for device in wanted.weight_device:
        if device.weight and bfq:
            writes.append(Write("io.bfq.weight", f"{device.major}:{device.minor} {device.weight}"))
    for key, devices in (
        ("rbps", wanted.throttle_read_bps_device),
        ("wbps", wanted.throttle_write_bps_device),
        ("riops", wanted.throttle_read_iops_device),
        ("wiops", wanted.throttle_write_iops_device),
    ):
        for item in devices:
            # 0 lifts the limit on v1
            writes.append(Write("io.max", f"{item.major}:{item.minor} {key}={item.rate or 'max'}"))
    return writes


def hugetlb(wanted: Iterable[HugepageLimit]) -> list[Write]:
    writes = []
    for page in wanted:
        writes.append(Write(f"hugetlb.{page.page_size}.max", str(page.limit)))
        writes.append(Write(f"hugetlb.{page.page_size}.rsvd.max", str(page.limit), ignore=(ENOENT,)))
    return writes


def makes_idle(wanted: Pairs) -> bool:
    """Of ``unified``; such a group has a fixed weight and refuses another."""
    return wanted.get("cpu.idle", "").strip() == "1"


def unified(wanted: Pairs) -> list[Write]:
    """``linux.resources.unified``: file names to text, one write per line. Raises InvalidSpec with every bad name."""
    problems = []
    writes = []
    idle = makes_idle(wanted)
    for name, text in wanted.items():
        pointer = "/linux/resources/unified/" + name.replace("~", "~0").replace("/", "~1")
        if "/" in name:
            problems.append(Problem(pointer, f'unified resource "{name}" must be a file name (no slashes)'))
        elif "." not in name.strip("."):
            problems.append(Problem(pointer, f'unified resource "{name}" must be in the form CONTROLLER.PARAMETER'))
        if not (idle and name == "cpu.weight"):
            writes += [Write(name, line) for line in text.splitlines() or [""]]
    if problems:
        raise InvalidSpec(problems)
    return writes
