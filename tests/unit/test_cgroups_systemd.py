"""Units, properties and annotations of the systemd driver; the numbers are runc's for the same input."""

from __future__ import annotations

import pytest

from shimd.cgroups import devices, systemd_properties
from shimd.cgroups.place import names_unit
from shimd.cgroups.systemd_properties import INFINITY, Property
from shimd.cgroups.systemd_unit import Unit, escape_cgroup, expand_slice, find_unit
from shimd.errors import InvalidSpec
from shimd.oci.model import BlockIo, Cpu, DeviceRule, Memory, Pids, Resources

NEWEST = 260
OLDEST = 230

# ---- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.slice", "a.slice"),
        ("a-b.slice", "a.slice/a-b.slice"),
        ("test-a-b.slice", "test.slice/test-a.slice/test-a-b.slice"),
        ("-.slice", ""),
        ("user-1000.slice", "user.slice/user-1000.slice"),
        ("memory.slice", "_memory.slice"),
    ],
)
def test_expand_slice(name: str, path: str) -> None:
    assert expand_slice(name) == path


@pytest.mark.parametrize(
    "name", ["", ".slice", "a", "a/b.slice", "-a.slice", "a--b.slice", "a-.slice", "a b.slice", "-"]
)
def test_no_slice(name: str) -> None:
    with pytest.raises(InvalidSpec, match="invalid slice name: "):
        expand_slice(name)


@pytest.mark.parametrize(
    ("cgroups_path", "unit"),
    [
        ("", Unit("runc-c1.scope", "system.slice", "system.slice/runc-c1.scope", "c1")),
        (
            "system.slice:docker:1234",
            Unit("docker-1234.scope", "system.slice", "system.slice/docker-1234.scope", "1234"),
        ),
        (
            "machine.slice:libpod:x",
            Unit("libpod-x.scope", "machine.slice", "machine.slice/libpod-x.scope", "x"),
        ),
        (
            "kubepods-besteffort-podA.slice:cri-containerd:x",
            Unit(
                "cri-containerd-x.scope",
                "kubepods-besteffort-podA.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podA.slice/cri-containerd-x.scope",
                "x",
            ),
        ),
        ("::x", Unit("-x.scope", "system.slice", "system.slice/-x.scope", "x")),
        ("-:p:x", Unit("p-x.scope", "-.slice", "p-x.scope", "x")),
        ("-.slice:p:x", Unit("p-x.scope", "-.slice", "p-x.scope", "x")),
        ("a.slice:ignored:a-b.slice", Unit("a-b.slice", "a.slice", "a.slice/a-b.slice", "a-b.slice")),
    ],
)
def test_find_unit(cgroups_path: str, unit: Unit) -> None:
    assert find_unit(cgroups_path, "c1") == unit
    assert unit.is_slice is unit.name.endswith(".slice")


def test_a_users_containers_are_in_the_users_slice() -> None:
    assert find_unit("", "c1", user=True)[:3] == ("runc-c1.scope", "user.slice", "user.slice/runc-c1.scope")


@pytest.mark.parametrize(
    ("container_id", "name"),
    [("default@c1", "runc-default:c1.scope"), ("a+b", "runc-a\\x2bb.scope"), ("a_b.c-d", "runc-a_b.c-d.scope")],
)
def test_ids_that_are_no_unit_names(container_id: str, name: str) -> None:
    unit = find_unit("", container_id)
    assert (unit.name, unit.path) == (name, f"system.slice/{name}")


@pytest.mark.parametrize("path", ["/a/b", "a", "a:b", "a.slice:b:c:d"])
def test_paths_that_name_no_unit(path: str) -> None:
    with pytest.raises(InvalidSpec, match='expected cgroupsPath to be of format "slice:prefix:name" for systemd'):
        find_unit(path, "c1")
    assert not names_unit(path)


def test_bad_slices_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="/linux/cgroupsPath: invalid slice name: system"):
        find_unit("system:docker:x", "c1")


def test_only_a_slice_in_front_is_meant_for_systemd() -> None:
    assert names_unit("system.slice:docker:x")
    assert not names_unit(":docker:x")
    assert not names_unit("/x.slice:docker:x")


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a.scope", "a.scope"),
        ("_a.slice", "__a.slice"),
        ("cgroup.x.scope", "_cgroup.x.scope"),
        ("cpux.slice", "cpux.slice"),
    ],
)
def test_escape_cgroup(name: str, escaped: str) -> None:
    assert escape_cgroup(name) == escaped


def test_properties_of_a_scope() -> None:
    found = dict(systemd_properties.of_unit(find_unit("system.slice:docker:x", ""), 7, v2=True))
    assert found == {
        "Description": ("s", "libcontainer container x"),
        "Slice": ("s", "system.slice"),
        "Delegate": ("b", True),
        "PIDs": ("au", [7]),
        "MemoryAccounting": ("b", True),
        "CPUAccounting": ("b", True),
        "IOAccounting": ("b", True),
        "TasksAccounting": ("b", True),
        "DefaultDependencies": ("b", False),
    }


def test_properties_of_a_slice_and_of_v1() -> None:
    found = dict(systemd_properties.of_unit(find_unit("a.slice::a-b.slice", ""), 7, v2=False))
    assert found["Wants"] == ("as", ["a.slice"])
    assert found["BlockIOAccounting"] == ("b", True)
    assert not {"Slice", "Delegate", "IOAccounting"} & found.keys()


# ---- limits ----------------------------------------------------------------------------------------------------------


def values(properties: list[Property]) -> dict[str, object]:
    """Without types, which are one per property: "t" for numbers, "ay" for masks, "s" for texts."""
    for name, (signature, value) in properties:
        wanted = {"AllowedCPUs": "ay", "AllowedMemoryNodes": "ay", "OOMPolicy": "s", "DevicePolicy": "s"}.get(name, "t")
        assert signature == wanted or name == "DeviceAllow"
        assert not isinstance(value, int) or 0 <= value <= INFINITY
    return {name: value for name, (_, value) in properties}


def v2(version: int = NEWEST, **fields: object) -> dict[str, object]:
    return values(systemd_properties.of_resources_v2(Resources(**fields), version))  # type: ignore[arg-type]


def v1(version: int = NEWEST, **fields: object) -> dict[str, object]:
    return values(systemd_properties.of_resources_v1(Resources(**fields), version))  # type: ignore[arg-type]


def test_nothing_asked_nothing_told() -> None:
    assert v2() == v1() == {}


def test_memory() -> None:
    assert v2(memory=Memory(limit=100, swap=300, reservation=50)) == {
        "MemoryMax": 100,
        "MemoryLow": 50,
        "MemorySwapMax": 200,
    }
    assert v2(memory=Memory(limit=-1)) == {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}
    assert v2(memory=Memory(limit=100, swap=-1)) == {"MemoryMax": 100, "MemorySwapMax": INFINITY}
    assert v2(memory=Memory(limit=100, swap=100)) == {"MemoryMax": 100, "MemorySwapMax": 0}
    assert v1(memory=Memory(limit=100, swap=300, reservation=50)) == {"MemoryLimit": 100}


def test_cpu_shares() -> None:
    assert v2(cpu=Cpu(shares=1024)) == {"CPUWeight": 100}
    assert v2(cpu=Cpu(shares=2)) == {"CPUWeight": 1}
    assert v1(cpu=Cpu(shares=1024)) == {"CPUShares": 1024}


def test_idle_is_a_weight_of_0() -> None:
    assert v2(cpu=Cpu(idle=1)) == v2(cpu=Cpu(idle=1, shares=1024)) == {"CPUWeight": 0}
    assert v2(251, cpu=Cpu(idle=1)) == {}
    assert v2(cpu=Cpu(idle=0)) == {}


@pytest.mark.parametrize(
    ("quota", "period", "told"),
    [
        (5000, 100000, {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 50000}),
        (5000, None, {"CPUQuotaPerSecUSec": 50000}),
        (None, 50000, {"CPUQuotaPeriodUSec": 50000, "CPUQuotaPerSecUSec": INFINITY}),
        (-1, 100000, {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": INFINITY}),
        (600, 100000, {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 10000}),
        (15555, 100000, {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 160000}),
        (200000, 100000, {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 2000000}),
    ],
)
def test_quota(quota: int | None, period: int | None, told: dict[str, int]) -> None:
    assert v2(cpu=Cpu(quota=quota, period=period)) == v1(cpu=Cpu(quota=quota, period=period)) == told
    told.pop("CPUQuotaPeriodUSec", None)
    assert v2(241, cpu=Cpu(quota=quota, period=period)) == told


@pytest.mark.parametrize(
    ("quota", "period", "rounded"),
    [(5000, 100000, 5000), (600, 100000, 1000), (15555, 100000, 16000), (15555, None, 16000), (-1, None, -1)],
)
def test_round_quota(quota: int, period: int | None, rounded: int) -> None:
    assert systemd_properties.round_quota(Cpu(quota=quota, period=period)).quota == rounded


def test_pids() -> None:
    assert v2(pids=Pids(5)) == v1(pids=Pids(5)) == {"TasksMax": 5}
    assert v2(pids=Pids(-1)) == {"TasksMax": INFINITY}
    assert v2(pids=Pids(0)) == {"TasksMax": 1}


def test_cpuset() -> None:
    told = {"AllowedCPUs": b"\x09", "AllowedMemoryNodes": b"\x01"}
    assert v2(cpu=Cpu(cpus="0,3", mems="0")) == v1(cpu=Cpu(cpus="0,3", mems="0")) == told
    assert v2(243, cpu=Cpu(cpus="0,3", mems="0")) == {}
    with pytest.raises(InvalidSpec, match='/linux/resources/cpu/cpus: "3-1"'):
        v2(cpu=Cpu(cpus="3-1"))


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("0", b"\x01"),
        ("1-3", b"\x0e"),
        (" 1, 3-5,", b"\x3a"),
        ("8", b"\x00\x01"),
        ("4-7", b"\xf0"),
        ("0-3,16-19", b"\x0f\x00\x0f"),
        ("128-130,1", b"\x02" + b"\x00" * 15 + b"\x07"),
    ],
)
def test_cpu_mask(text: str, mask: bytes) -> None:
    assert systemd_properties.cpu_mask(text) == mask


@pytest.mark.parametrize("text", ["", ",", "3-1", "a", "1-", "-1"])
def test_no_cpu_mask(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the text is that of cpu_list)
        systemd_properties.cpu_mask(text)


def test_block_io_weight() -> None:
    assert v2(block_io=BlockIo(weight=500)) == {"IOWeight": 4950}
    assert v1(block_io=BlockIo(weight=500)) == {"BlockIOWeight": 500}


# ---- unified ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("cpu.idle", "1", {"CPUWeight": 0}),
        ("cpu.idle", "0", {}),
        ("cpu.weight", "45", {"CPUWeight": 45}),
        ("cpu.max", "5000 100000", {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 50000}),
        ("cpu.max", "5000", {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 50000}),
        ("cpu.max", "max 50000", {"CPUQuotaPeriodUSec": 50000, "CPUQuotaPerSecUSec": INFINITY}),
        ("cpuset.cpus", "0,3", {"AllowedCPUs": b"\x09"}),
        ("cpuset.mems", "0", {"AllowedMemoryNodes": b"\x01"}),
        ("memory.high", "5", {"MemoryHigh": 5}),
        ("memory.low", "5", {"MemoryLow": 5}),
        ("memory.min", "5", {"MemoryMin": 5}),
        ("memory.max", "max", {"MemoryMax": INFINITY}),
        ("memory.swap.max", " 5\n", {"MemorySwapMax": 5}),
        ("pids.max", "99", {"TasksMax": 99}),
        ("pids.max", "0", {"TasksMax": 1}),
        ("pids.max", "max", {"TasksMax": INFINITY}),
        ("memory.oom.group", "1", {}),
        ("hugetlb.2MB.max", "0", {}),
    ],
)
def test_unified(file: str, text: str, told: dict[str, object]) -> None:
    assert v2(unified={file: text}) == told


def test_unified_idle_wins_over_a_weight() -> None:
    assert v2(unified={"cpu.idle": "1", "cpu.weight": "45"}) == {"CPUWeight": 0}
    assert v2(251, unified={"cpu.idle": "1", "cpu.weight": "45"}) == {"CPUWeight": 45}


def test_unified_of_an_old_systemd() -> None:
    assert v2(OLDEST, unified={"cpuset.cpus": "0", "cpu.idle": "1"}) == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [("memory.max", "1G"), ("pids.max", ""), ("cpu.max", "5000 x"), ("cpu.weight", "-1"), ("cpuset.cpus", "x")],
)
def test_unified_values_that_are_none(file: str, text: str) -> None:
    with pytest.raises(InvalidSpec, match=f"/linux/resources/unified/{file}: invalid value"):
        v2(unified={file: text})


@pytest.mark.parametrize(("text", "policy"), [("1", "kill"), ("0", "continue"), ("2", None)])
def test_oom_group(text: str, policy: str | None) -> None:
    wanted = [("OOMPolicy", ("s", policy))] if policy else []
    assert systemd_properties.of_oom_group({"memory.oom.group": text}, 253) == wanted
    assert systemd_properties.of_oom_group({"memory.oom.group": text}, 252) == []


# ---- devices ---------------------------------------------------------------------------------------------------------


def allowed(*rules: DeviceRule, version: int = NEWEST) -> tuple[object, object]:
    """(policy, list) for rules without the defaults."""
    access = devices.emulate(map(devices.from_config, rules))
    properties = systemd_properties.of_devices(access, version)
    assert properties[0] == ("DeviceAllow", ("a(ss)", [])), "what was allowed before is taken away first"
    found = values(properties)
    return found["DevicePolicy"], found["DeviceAllow"]


NONE = DeviceRule(allow=False, access="rwm")


def test_what_systemd_can_say() -> None:
    rules = (
        NONE,
        DeviceRule(allow=True, type="c", major=1, minor=3, access="rwm"),
        DeviceRule(allow=True, type="b", major=8, minor=0, access="r"),
        DeviceRule(allow=True, type="c", major=136, access="rw"),
        DeviceRule(allow=True, type="b", access="m"),
    )
    policy, entries = allowed(*rules)
    assert policy == "strict"
    assert entries == [("block-*", "m"), ("/dev/block/8:0", "r"), ("/dev/char/1:3", "rwm"), ("char-136", "rw")]


@pytest.mark.parametrize(
    "rules",
    [
        (DeviceRule(allow=True, access="rwm"),),
        (DeviceRule(allow=True, access="rwm"), DeviceRule(allow=False, type="c", major=1, minor=3, access="w")),
        (NONE, DeviceRule(allow=True, type="c", minor=3, access="r")),
        (NONE,),
    ],
)
def test_what_it_cannot_say_is_left_to_us(rules: tuple[DeviceRule, ...]) -> None:
    assert allowed(*rules) == ("auto", [])


def test_an_old_systemd_wants_device_nodes() -> None:
    rule = DeviceRule(allow=True, type="c", major=1, minor=3, access="rwm")
    assert allowed(NONE, rule, version=239) == ("auto", [])


# ---- annotations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("CollectMode", "'inactive-or-failed'", ("CollectMode", ("s", "inactive-or-failed"))),
        ("TimeoutStopUSec", "uint64 123456789", ("TimeoutStopUSec", ("t", 123456789))),
        ("TimeoutStopSec", "uint32 5", ("TimeoutStopUSec", ("t", 5000000))),
        ("TimeoutStopSec", "0.5", ("TimeoutStopUSec", ("t", 500000))),
        ("TimeoutStopSec", "byte 2", ("TimeoutStopUSec", ("t", 2000000))),
        ("FOOSec", "1", ("FOOSec", ("i", 1))),
        ("Sec", "1", ("Sec", ("i", 1))),
    ],
)
def test_annotations(name: str, text: str, told: Property) -> None:
    others = {"org.opencontainers.image.os": "linux", "org.systemd.propertyX": "1"}
    assert systemd_properties.of_annotations({f"org.systemd.property.{name}": text} | others) == [told]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("Xy", "1", "three letters"),
        ("A.B", "1", "three letters"),
        ("Foo1", "1", "three letters"),
        ("Foo", "bar", "unexpected 'bar'"),
        ("FooSec", "'5'", "not a number"),
        ("FooSec", "-1", "out of range"),
    ],
)
def test_annotations_that_are_wrong(name: str, text: str, reason: str) -> None:
    key = f"org.systemd.property.{name}"
    with pytest.raises(InvalidSpec, match=f"/annotations/{key}: {text}: .*{reason}"):
        systemd_properties.of_annotations({key: text})
