"""Resources and annotations as properties of a systemd unit, systemd.resource-control(5). Pure.

Not all limits have a property, so the same are written to the cgroup's files as well. What has one must be told,
though: systemd writes all that it knows again whenever it changes anything, with its own defaults for the rest.
"""

from __future__ import annotations

from shimd.cgroups import resources_v2
from shimd.cgroups.devices import ANY, Access, access_text
from shimd.cgroups.systemd_unit import Unit
from shimd.errors import InvalidSpec, Problem
from shimd.oci.model import Cpu, Pairs, Pids, Resources
from shimd.oci.values import cpu_list
from shimd.typed import Any, Iterator, Mapping

Property = tuple[str, tuple[str, Any]]  # name, D-Bus signature, value

INFINITY = 2**64 - 1
_DEFAULT_PERIOD = 100000  # microseconds
_PREFIX = "org.systemd.property."

# The systemd that has them.
_DEVICES_BY_NUMBER = 240  # DeviceAllow=char-136, and devices without a node
_QUOTA_PERIOD = 242
_CPUSET = 244
_CPU_IDLE = 252  # as CPUWeight=idle
_OOM_POLICY = 253  # of scopes

_MEMORY_FILES = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
}
_CPUSET_FILES = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def _u64(name: str, value: int) -> Property:
    """-1 is infinity on both sides."""
    return name, ("t", value & INFINITY)


def _true(name: str) -> Property:
    return name, ("b", True)


def of_unit(unit: Unit, pid: int, *, v2: bool) -> list[Property]:
    """What a container's unit is beside its limits. As far as systemd is concerned, a slice has no processes."""
    properties: list[Property] = [("Description", ("s", f"libcontainer container {unit.title}"))]
    if unit.is_slice:
        properties.append(("Wants", ("as", [unit.parent])))
    else:
        properties += [("Slice", ("s", unit.parent)), _true("Delegate"), ("PIDs", ("au", [pid]))]
    properties += map(_true, ("MemoryAccounting", "CPUAccounting", "IOAccounting" if v2 else "BlockIOAccounting"))
    return [*properties, _true("TasksAccounting"), ("DefaultDependencies", ("b", False))]


# ---- limits ----------------------------------------------------------------------------------------------------------


def of_resources_v2(resources: Resources, version: int) -> list[Property]:
    """Raises InvalidSpec."""
    memory = resources.memory
    properties = []
    if memory.limit:
        properties.append(_u64("MemoryMax", memory.limit))
    if memory.reservation:
        properties.append(_u64("MemoryLow", memory.reservation))
    swap = resources_v2.swap_limit(memory.swap or 0, memory.limit or 0)
    if swap is not None:
        properties.append(_u64("MemorySwapMax", swap))
    cpu = resources.cpu
    if cpu.idle == 1 and version >= _CPU_IDLE:
        properties.append(_u64("CPUWeight", 0))
    elif cpu.shares and cpu.idle != 1:
        properties.append(_u64("CPUWeight", resources_v2.weight_of_shares(cpu.shares)))
    if resources.block_io.weight:
        properties.append(_u64("IOWeight", resources_v2.io_weight(resources.block_io.weight)))
    return [*properties, *_common(resources, version), *of_unified(resources.unified, version)]


def of_resources_v1(resources: Resources, version: int) -> list[Property]:
    properties = []
    if resources.memory.limit:
        properties.append(_u64("MemoryLimit", resources.memory.limit))
    if resources.cpu.shares:
        properties.append(_u64("CPUShares", resources.cpu.shares))
    if resources.block_io.weight:
        properties.append(_u64("BlockIOWeight", resources.block_io.weight))
    return [*properties, *_common(resources, version)]


def _common(resources: Resources, version: int) -> list[Property]:
    cpu = resources.cpu
    properties = of_quota(cpu.quota or 0, cpu.period or 0, version)
    properties += _tasks(resources.pids)
    for name, field, text in (("AllowedCPUs", "cpus", cpu.cpus), ("AllowedMemoryNodes", "mems", cpu.mems)):
        if text and version >= _CPUSET:
            try:
                properties.append((name, ("ay", cpu_mask(text))))
            except ValueError as error:
                raise InvalidSpec([Problem(f"/linux/resources/cpu/{field}", f'"{text}": {error}')]) from error
    return properties


def of_quota(quota: int, period: int, version: int) -> list[Property]:
    """``quota`` and ``period`` in microseconds; a quota that is not above 0 is none."""
    properties = []
    if period and version >= _QUOTA_PERIOD:
        properties.append(_u64("CPUQuotaPeriodUSec", period))
    if quota or period:
        per_second = _per_second(quota, period or _DEFAULT_PERIOD) if quota > 0 else INFINITY
        properties.append(_u64("CPUQuotaPerSecUSec", per_second))
    return properties


def _per_second(quota: int, period: int) -> int:
    """systemd knows whole per cents, so this is rounded up to 10 ms: a limit of the container itself, or of a cgroup in
    it, could not be as large as was asked otherwise.
    """
    exact = quota * 1_000_000 // period
    return -(-exact // 10_000) * 10_000


def round_quota(cpu: Cpu) -> Cpu:
    """The quota that systemd will write, so that the cgroup's file does not go back and forth between two."""
    if not cpu.quota or cpu.quota < 0:
        return cpu
    period = cpu.period or _DEFAULT_PERIOD
    if cpu.quota * 1_000_000 // period % 10_000 == 0:
        return cpu
    return cpu._replace(quota=_per_second(cpu.quota, period) * period // 1_000_000)


def _tasks(pids: Pids) -> list[Property]:
    if pids.limit is None:
        return []
    return [_u64("TasksMax", INFINITY if pids.limit < 0 else max(pids.limit, 1))]  # systemd takes no 0


def cpu_mask(text: str) -> bytes:
    """A list of CPUs or memory nodes ("0-3,7") as bits, the lowest first. Raises ValueError."""
    mask = sum(1 << number for number in cpu_list(text))
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


# ---- unified ---------------------------------------------------------------------------------------------------------


def of_unified(unified: Pairs, version: int) -> list[Property]:
    """Files without a property are left out. Raises InvalidSpec for values that are none."""
    properties: list[Property] = []
    problems = []
    for file, text in unified.items():
        try:
            properties += _of_file(file, text.strip(), unified, version)
        except ValueError as error:
            problems.append(Problem(f"/linux/resources/unified/{file}", f'invalid value "{text}": {error}'))
    if problems:
        raise InvalidSpec(problems)
    return properties


def _of_file(file: str, value: str, unified: Pairs, version: int) -> list[Property]:
    idle = resources_v2.makes_idle(unified) and version >= _CPU_IDLE
    match file:
        case "cpu.idle" if idle:
            return [_u64("CPUWeight", 0)]
        case "cpu.weight" if not idle:
            return [_u64("CPUWeight", _number(value))]
        case "cpu.max":
            return _of_cpu_max(value, version)
        case "cpuset.cpus" | "cpuset.mems" if version >= _CPUSET:
            return [(_CPUSET_FILES[file], ("ay", cpu_mask(value)))]
        case "pids.max":
            return [_u64("TasksMax", _number(value) or 1)]
        case _ if file in _MEMORY_FILES:
            return [_u64(_MEMORY_FILES[file], _number(value))]
    return []


def _of_cpu_max(value: str, version: int) -> list[Property]:
    quota, _, period = value.partition(" ")
    number = _number(quota)
    return of_quota(-1 if number == INFINITY else number, _number(period) if period else _DEFAULT_PERIOD, version)


def _number(text: str) -> int:
    if text == "max":
        return INFINITY
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not a number")
    return int(text)


def of_oom_group(unified: Pairs, version: int) -> list[Property]:
    """Only a unit that starts can be told."""
    policy = {"0": "continue", "1": "kill"}.get(unified.get("memory.oom.group", "").strip())
    return [("OOMPolicy", ("s", policy))] if policy and version >= _OOM_POLICY else []


# ---- devices ---------------------------------------------------------------------------------------------------------


def of_devices(access: Access, version: int) -> list[Property]:
    """systemd knows lists of what is allowed, of single devices and whole majors. Rules of another kind it could only
    carry out wrongly, again with each reload of its configuration: then it is to leave devices alone, and the rules
    are in force by our own program (v2) or file (v1) only.
    """
    entries = [] if access.default_allow or version < _DEVICES_BY_NUMBER else list(_entries(access))
    policy = "strict" if entries and None not in entries else "auto"
    allowed = [entry for entry in entries if entry is not None] if policy == "strict" else []
    # An empty list takes away what a unit of that name allowed before.
    properties: list[Property] = [("DeviceAllow", ("a(ss)", [])), ("DevicePolicy", ("s", policy))]
    return [*properties, ("DeviceAllow", ("a(ss)", allowed))] if allowed else properties


def _entries(access: Access) -> Iterator[tuple[str, str] | None]:
    """None for one that has no form in systemd."""
    for (kind, major, minor), mask in sorted(access.exceptions.items()):
        word = "block" if kind == "b" else "char"
        if minor != ANY:
            yield None if major == ANY else (f"/dev/{word}/{major}:{minor}", access_text(mask))
        else:
            yield f"{word}-{'*' if major == ANY else major}", access_text(mask)


# ---- annotations -----------------------------------------------------------------------------------------------------


def of_annotations(annotations: Mapping[str, str]) -> list[Property]:
    """``org.systemd.property.NAME``, the value as GVariant text. Raises InvalidSpec with all that are wrong."""
    properties = []
    problems = []
    for key, text in annotations.items():
        if key.startswith(_PREFIX):
            try:
                properties.append(_of_annotation(key.removeprefix(_PREFIX), text))
            except ValueError as error:
                problems.append(Problem(f"/annotations/{key}", f"{text}: {error}"))
    if problems:
        raise InvalidSpec(problems)
    return properties


def _of_annotation(name: str, text: str) -> Property:
    if not (name.isascii() and name.isalpha() and len(name) >= 3):
        raise ValueError("a property's name has three letters or more, and nothing else")
    from shimd.cgroups import gvariant  # with regular expressions, which take longer to load than to use

    signature, value = gvariant.parse(text)
    # The names in unit files that end in Sec are USec on the bus, with a number of microseconds.
    if name.endswith("Sec") and name[-4:-3].islower():
        return name.removesuffix("Sec") + "USec", ("t", _microseconds(signature, value))
    return name, (signature, value)


def _microseconds(signature: str, value: Any) -> int:
    if signature not in tuple("ynqiuxtd"):
        raise ValueError("not a number")
    if not 0 <= value < INFINITY / 1_000_000:
        raise ValueError("out of range")
    return int(value * 1_000_000)
