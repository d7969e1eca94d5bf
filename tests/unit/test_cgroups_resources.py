"""The numbers are those of runc and crun for the same input."""

from __future__ import annotations

from errno import ENOENT

import pytest

from shimd.cgroups import resources_v1, resources_v2
from shimd.cgroups.files import Write
from shimd.errors import InvalidSpec
from shimd.oci.model import (
    BlockIo,
    Cpu,
    HugepageLimit,
    InterfacePriority,
    Memory,
    Network,
    Pids,
    Rdma,
    Resources,
    ThrottleDevice,
    WeightDevice,
)

MAX = resources_v1.UNLIMITED


def v1(**fields: object) -> list[tuple[str, str]]:
    """(file, value) of all controllers."""
    plan = resources_v1.writes(Resources(**fields))  # type: ignore[arg-type]  # checked by the model's own tests
    return [(item.file, item.value) for writes in plan.values() for item in writes]


def v2(**fields: object) -> list[tuple[str, str]]:
    writes = resources_v2.writes(Resources(**fields))  # type: ignore[arg-type]  # checked by the model's own tests
    return [(item.file, item.value) for item in writes]


WEIGHTS = {0: 0, 1: 1, 2: 1, 3: 2, 100: 17, 512: 59, 1024: 100, 2048: 174, 262143: 10000, 262144: 10000, 262145: 10000}


@pytest.mark.parametrize(("shares", "weight"), WEIGHTS.items())
def test_weight_of_shares(shares: int, weight: int) -> None:
    assert resources_v2.weight_of_shares(shares) == weight


def test_weight_grows_with_shares() -> None:
    weights = [resources_v2.weight_of_shares(shares) for shares in range(1, 262145, 97)]
    assert weights == sorted(weights)
    assert set(weights) <= set(range(1, 10001))


@pytest.mark.parametrize(("v1_weight", "weight"), [(0, 0), (10, 1), (11, 11), (100, 910), (500, 4950), (1000, 10000)])
def test_io_weight(v1_weight: int, weight: int) -> None:
    assert resources_v2.io_weight(v1_weight) == weight


@pytest.mark.parametrize(
    ("swap", "limit", "expected"),
    [
        (0, 0, None),
        (0, 100, None),
        (0, -1, MAX),
        (-1, 0, MAX),
        (-1, 100, MAX),
        (-1, -1, MAX),
        (500, -1, 500),
        (300, 100, 200),
        (100, 100, 0),
    ],
)
def test_swap_limit(swap: int, limit: int, expected: int | None) -> None:
    assert resources_v2.swap_limit(swap, limit) == expected


@pytest.mark.parametrize(
    ("swap", "limit", "text"),
    [
        (100, 0, "unable to set swap limit without memory limit"),
        (100, 101, r"memory\+swap limit should be >= memory limit"),
        (100, -2, "invalid memory value: -2"),
    ],
)
def test_swap_limits_that_cannot_be(swap: int, limit: int, text: str) -> None:
    with pytest.raises(InvalidSpec, match=text):
        resources_v2.swap_limit(swap, limit)


def test_nothing_asked_writes_nothing() -> None:
    assert resources_v1.writes(Resources()) == {}
    assert resources_v2.writes(Resources()) == []
    zero = Resources(memory=Memory(limit=0, swap=0, reservation=0), cpu=Cpu(shares=0, quota=0, period=0))
    assert resources_v1.writes(zero) == {}
    assert resources_v2.writes(zero) == []


@pytest.mark.parametrize(("limit", "text"), [(-1, "max"), (-7, "max"), (0, "1"), (1, "1"), (12, "12")])
def test_pids(limit: int, text: str) -> None:
    assert v1(pids=Pids(limit)) == v2(pids=Pids(limit)) == [("pids.max", text)]


class TestMemory:
    @pytest.mark.parametrize(
        ("now", "limit", "swap", "first"),
        [
            (None, 100, 200, "memory.limit_in_bytes"),  # fresh: unlimited
            (50, 100, 200, "memory.memsw.limit_in_bytes"),  # growing
            (400, 100, 200, "memory.limit_in_bytes"),  # shrinking
            (None, 100, -1, "memory.memsw.limit_in_bytes"),
            (50, -1, None, "memory.memsw.limit_in_bytes"),
        ],
    )
    def test_order_on_v1(self, now: int | None, limit: int, swap: int | None, first: str) -> None:
        writes = resources_v1.memory(Memory(limit=limit, swap=swap), now)
        assert len(writes) == 2
        assert writes[0].file == first

    def test_unlimited_without_swap_accounting_is_tolerated_on_v1(self) -> None:
        swap, limit = resources_v1.memory(Memory(limit=-1), None)
        assert swap == Write("memory.memsw.limit_in_bytes", "-1", ignore=(ENOENT,))
        assert limit == Write("memory.limit_in_bytes", "-1")

    def test_everything_on_v1(self) -> None:
        wanted = Memory(limit=4096, swap=8192, reservation=2048, swappiness=0, disable_oom_killer=True)
        assert v1(memory=wanted) == [
            ("memory.limit_in_bytes", "4096"),
            ("memory.memsw.limit_in_bytes", "8192"),
            ("memory.soft_limit_in_bytes", "2048"),
            ("memory.oom_control", "1"),
            ("memory.swappiness", "0"),
        ]

    def test_everything_on_v2(self) -> None:
        wanted = Memory(limit=4096, swap=8192, reservation=2048, swappiness=0, kernel=1, kernel_tcp=1)
        assert v2(memory=wanted) == [("memory.swap.max", "4096"), ("memory.max", "4096"), ("memory.low", "2048")]

    def test_unlimited_on_v2(self) -> None:
        assert v2(memory=Memory(limit=-1)) == [("memory.swap.max", "max"), ("memory.max", "max")]
        assert v2(memory=Memory(reservation=-1)) == [("memory.low", "max")]

    @pytest.mark.parametrize(("swap", "ignored"), [(4096, (ENOENT,)), (-1, (ENOENT,)), (8192, ())])
    def test_missing_swap_accounting_matters_only_for_a_real_limit(self, swap: int, ignored: tuple[int, ...]) -> None:
        assert resources_v2.memory(Memory(limit=4096, swap=swap))[0].ignore == ignored

    @pytest.mark.parametrize("value", [101, -2, 2**64])
    def test_swappiness_out_of_range(self, value: int) -> None:
        with pytest.raises(InvalidSpec, match=r"/linux/resources/memory/swappiness: .*valid range is 0-100"):
            v1(memory=Memory(swappiness=value))

    def test_swappiness_left_alone(self) -> None:
        assert v1(memory=Memory(swappiness=-1)) == []


class TestCpu:
    def test_everything_on_v1(self) -> None:
        wanted = Cpu(512, 50000, 1000, 100000, 950, 1000, "0-1", "0", 0)
        assert v1(cpu=wanted) == [
            ("cpu.idle", "0"),
            ("cpu.shares", "512"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_burst_us", "1000"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.rt_period_us", "1000"),
            ("cpu.rt_runtime_us", "950"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
        ]

    @pytest.mark.parametrize(("quota", "retried"), [(None, False), (50000, True)])
    def test_period_and_burst_are_tried_again_only_after_a_quota(self, quota: int | None, retried: bool) -> None:  # noqa: FBT001
        writes = {item.file: item for item in resources_v1.cpu(Cpu(quota=quota, period=100000, burst=100))}
        assert writes["cpu.cfs_period_us"].retry is retried
        assert writes["cpu.cfs_burst_us"].retry is retried
        assert writes["cpu.cfs_burst_us"].ignore == (ENOENT,)

    @pytest.mark.parametrize(
        ("shares", "text"),
        [(1, "the minimum allowed cpu-shares is 2"), (262145, "the maximum allowed cpu-shares is 262144")],
    )
    def test_shares_that_the_kernel_would_clamp(self, shares: int, text: str) -> None:
        with pytest.raises(InvalidSpec, match=text):
            v1(cpu=Cpu(shares=shares))

    @pytest.mark.parametrize(
        ("cpu", "expected"),
        [
            (Cpu(quota=50000), "50000 100000"),
            (Cpu(quota=50000, period=20000), "50000 20000"),
            (Cpu(period=20000), "max 20000"),
            (Cpu(quota=-1), "max 100000"),
            (Cpu(quota=-1, period=20000), "max 20000"),
        ],
    )
    def test_quota_and_period_on_v2(self, cpu: Cpu, expected: str) -> None:
        assert v2(cpu=cpu) == [("cpu.max", expected)]

    def test_burst_is_tried_before_and_after_on_v2(self) -> None:
        burst, limit = resources_v2.cpu(Cpu(quota=50000, burst=60000))
        assert burst == Write("cpu.max.burst", "60000", retry=True)
        assert limit.file == "cpu.max"

    @pytest.mark.parametrize("convert", [v1, v2])
    def test_idle_leaves_shares_out(self, convert: object) -> None:
        assert callable(convert)
        assert convert(cpu=Cpu(idle=1, shares=512)) == [("cpu.idle", "1")]
        assert [file for file, _ in convert(cpu=Cpu(idle=0, shares=512))][0] == "cpu.idle"  # noqa: RUF015

    def test_realtime_is_refused_on_v2(self) -> None:
        with pytest.raises(InvalidSpec, match="realtime"):
            v2(cpu=Cpu(realtime_runtime=950))


BLOCK_IO = BlockIo(
    weight=500,
    leaf_weight=300,
    weight_device=(WeightDevice(8, 0, 200, 100),),
    throttle_read_bps_device=(ThrottleDevice(8, 0, 1024),),
    throttle_write_bps_device=(ThrottleDevice(8, 0, 2048),),
    throttle_read_iops_device=(ThrottleDevice(8, 16, 10),),
    throttle_write_iops_device=(ThrottleDevice(8, 16, 0),),
)


class TestBlockIo:
    def test_v1(self) -> None:
        assert v1(block_io=BLOCK_IO) == [
            ("blkio.bfq.weight", "500"),
            ("blkio.leaf_weight", "300"),
            ("blkio.bfq.weight_device", "8:0 200"),
            ("blkio.leaf_weight_device", "8:0 100"),
            ("blkio.throttle.read_bps_device", "8:0 1024"),
            ("blkio.throttle.write_bps_device", "8:0 2048"),
            ("blkio.throttle.read_iops_device", "8:16 10"),
            ("blkio.throttle.write_iops_device", "8:16 0"),
        ]

    def test_v2(self) -> None:
        assert v2(block_io=BLOCK_IO) == [
            ("io.weight", "4950"),
            ("io.max", "8:0 rbps=1024"),
            ("io.max", "8:0 wbps=2048"),
            ("io.max", "8:16 riops=10"),
            ("io.max", "8:16 wiops=max"),
        ]

    def test_v2_with_bfq(self) -> None:
        wanted = BlockIo(weight=500, weight_device=(WeightDevice(8, 0, 200),))
        assert resources_v2.block_io(wanted, bfq=True) == [
            Write("io.bfq.weight", "500"),
            Write("io.bfq.weight", "8:0 200"),
        ]


def test_hugetlb() -> None:
    pages = (HugepageLimit("2MB", 4194304),)
    assert v1(hugepage_limits=pages) == [
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
    ]
    assert v2(hugepage_limits=pages) == [("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")]


def test_network_is_for_v1() -> None:
    network = Network(0x100001, (InterfacePriority("eth0", 5),))
    assert v1(network=network) == [("net_cls.classid", "1048577"), ("net_prio.ifpriomap", "eth0 5")]
    assert v2(network=network) == []


@pytest.mark.parametrize("convert", [v1, v2])
def test_rdma(convert: object) -> None:
    assert callable(convert)
    limits = {"mlx5_1": Rdma(3, 10000), "mlx4_0": Rdma(hca_objects=7)}
    assert convert(rdma=limits) == [
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("rdma.max", "mlx4_0 hca_object=7"),
    ]


class TestUnified:
    def test_lines(self) -> None:
        assert resources_v2.unified({"cpu.idle": "1", "cpu.weight": "8"}) == [Write("cpu.idle", "1")]
        assert v2(cpu=Cpu(shares=512), unified={"cpu.idle": "1"}) == []
        assert resources_v2.unified({"io.max": "8:0 rbps=1\n8:16 rbps=2\n", "memory.low": "0"}) == [
            Write("io.max", "8:0 rbps=1"),
            Write("io.max", "8:16 rbps=2"),
            Write("memory.low", "0"),
        ]

    def test_bad_names_are_all_reported(self) -> None:
        with pytest.raises(InvalidSpec) as caught:
            resources_v2.unified({"../x.y": "1", "memory": "1", "pids.max": "1"})
        assert [problem.pointer for problem in caught.value.problems] == [
            "/linux/resources/unified/..~1x.y",
            "/linux/resources/unified/memory",
        ]

    def test_refused_on_v1(self) -> None:
        with pytest.raises(InvalidSpec, match="/linux/resources/unified: invalid configuration: needs cgroup v2"):
            v1(unified={"memory.max": "1"})


@pytest.mark.parametrize(
    ("resources", "domain"),
    [
        (Resources(), False),
        (Resources(pids=Pids(1), cpu=Cpu(shares=2, quota=1000, cpus="0")), False),
        (Resources(memory=Memory(limit=1)), True),
        (Resources(block_io=BlockIo(weight=10)), True),
        (Resources(hugepage_limits=(HugepageLimit("2MB", 0),)), True),
    ],
)
def test_needs_domain(resources: Resources, domain: bool) -> None:  # noqa: FBT001
    assert resources_v2.needs_domain(resources) is domain
