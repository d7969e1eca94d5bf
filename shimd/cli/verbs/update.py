"""``update``: change the limits of a container."""

from __future__ import annotations

import json

from shimd.cli.command import ID_ARGUMENT, Call, Command, number, text
from shimd.cli.units import size
from shimd.errors import InvalidArgument, NotFound
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.oci.model import Resources

# option, object and member of the resources document; help
_SIZES = (
    ("memory", ("memory", "limit"), "Memory limit (in bytes)"),
    ("memory-reservation", ("memory", "reservation"), "Memory reservation or soft_limit (in bytes)"),
    ("memory-swap", ("memory", "swap"), "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
)
_NUMBERS = (
    ("cpu-period", ("cpu", "period"), "CPU CFS period to be used for hardcapping (in usecs). 0 to use system default"),
    ("cpu-quota", ("cpu", "quota"), "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period"),
    ("cpu-burst", ("cpu", "burst"), "CPU CFS hardcap burst limit (in usecs), in addition to the quota"),
    ("cpu-share", ("cpu", "shares"), "CPU shares (relative weight vs. other containers)"),
    ("cpu-rt-period", ("cpu", "realtimePeriod"), "CPU realtime period (in usecs). 0 to use system default"),
    ("cpu-rt-runtime", ("cpu", "realtimeRuntime"), "CPU realtime hardcap limit (in usecs) in a given period"),
    ("cpu-idle", ("cpu", "idle"), "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE"),
)
_TEXTS = (
    ("cpuset-cpus", ("cpu", "cpus"), "CPU(s) to use"),
    ("cpuset-mems", ("cpu", "mems"), "Memory node(s) to use"),
)
_IGNORED = ("kernel-memory", "kernel-memory-tcp")
_RDT = (
    ("l3-cache-schema", "The string of Intel RDT/CAT L3 cache schema"),
    ("mem-bw-schema", "The string of Intel RDT/MBA memory bandwidth schema"),
)

_DIGITS = 25  # of a number with more the interpreter may refuse the conversion; it is too large all the same

COMMAND = Command(
    "update container resource constraints",
    ID_ARGUMENT,
    description="""What is not named keeps its value, but for cpuset-cpus, cpuset-mems, cpu-burst, cpu-idle and
pids-limit of a --resources document, which are written only when they are in it. Sizes
may have a unit, as in 512m.""",
    options=(
        text("resources", "a file with the resources as in config.json, or '-': all other options are ignored", "r"),
        number("blkio-weight", "Specifies per cgroup weight, range is from 10 to 1000"),
        *(text(name, help_) for name, _, help_ in _NUMBERS),
        *(text(name, help_) for name, _, help_ in _TEXTS),
        *(text(name, "(obsoleted; do not use)", hidden=True) for name in _IGNORED),
        *(text(name, help_) for name, _, help_ in _SIZES),
        number("pids-limit", "Maximum number of pids allowed in the container"),
        *(text(name, help_) for name, help_ in _RDT),
    ),
    least=1,
    most=1,
)


def run(call: Call) -> int:
    with call.container() as container:
        change = _from_file(call) if call.text("resources") else _from_options(call)
        schemata = [call.text(name) or "" for name, _ in _RDT]
        if any(schemata):
            call.runtime().update_rdt(container, l3_cache_schema=schemata[0], mem_bw_schema=schemata[1])
        for warning in call.runtime().update(container, change):
            call.messages.warn(warning)
    return 0


def _from_file(call: Call) -> Resources:
    from shimd.oci.read import read_resources

    return _unchecked(read_resources(_read(call.text("resources"))))


def _read(path: str) -> bytes:
    from shimd.oci.read import MAX_BYTES

    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"open {path}: {error.strerror}") from error


def _from_options(call: Call) -> Resources:
    from shimd.oci.read import read_resources

    document = resources_document({name: call.text(name) for name, _, _ in (*_SIZES, *_NUMBERS, *_TEXTS)})
    if weight := call.number("blkio-weight"):
        document["blockIO"] = {"weight": weight}
    if call.given("pids-limit"):
        document["pids"] = {"limit": call.number("pids-limit")}
    ignored = [size_of(name, call.text(name)) for name in _IGNORED if call.text(name)]
    if ignored:
        call.messages.warn("Kernel memory settings are ignored and will be removed")
    return _unchecked(read_resources(json.dumps(document).encode()))


def _unchecked(resources: Resources) -> Resources:
    """The limit is only compared with the usage when the document says so, whatever an earlier one said."""
    if resources.memory.check_before_update is not None:
        return resources
    return resources._replace(memory=resources.memory._replace(check_before_update=False))


def resources_document(given: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The resources document of these options; "" is an option that was not given. Raises InvalidArgument."""
    document: dict[str, dict[str, Any]] = {}
    for table, read in ((_SIZES, size_of), (_NUMBERS, _number_of), (_TEXTS, _text_of)):
        for name, (parent, member), _ in table:
            if given[name]:
                document.setdefault(parent, {})[member] = read(name, given[name])
    return document


def size_of(name: str, value: str) -> int:
    try:
        return size(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid value for {name}: {error}") from None


def _number_of(name: str, value: str) -> int:
    if not value.removeprefix("-").removeprefix("+").isdecimal() or not value.isascii():
        raise InvalidArgument(f'invalid value for {name}: "{value}" is not a number')
    return int(value[:_DIGITS])


def _text_of(_: str, value: str) -> str:
    return value
