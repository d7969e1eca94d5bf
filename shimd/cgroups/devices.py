"""Device rules: what a list of allow and deny rules means, and the fewest rules that say the same.

``linux.resources.devices`` is a *sequence*: each rule changes what the ones before it left. A cgroup knows only a
default and a set of exceptions, so the sequence is played through a model of the v1 devices controller
(:class:`Access`), and what is left is written to ``devices.deny``/``devices.allow`` (v1) or compiled into a program
(v2, :mod:`shimd.cgroups.ebpf`). A rule for type "a" resets the model whatever its numbers are, as in the kernel.
"""

from __future__ import annotations

from shimd.caches import lru_cache
from shimd.errors import InvalidSpec, Problem
from shimd.oci.model import DeviceRule
from shimd.records import Record
from shimd.typed import Iterable

ANY = -1  # a wildcard major or minor number
READ, WRITE, MKNOD = 2, 4, 1  # BPF_DEVCG_ACC_*
ALL = READ | WRITE | MKNOD
_LETTERS = (("r", READ), ("w", WRITE), ("m", MKNOD))

Node = tuple[str, int, int]  # type "c" or "b", major, minor


class Rule(Record):
    """One step of a sequence; type "a", "c" or "b"; numbers ANY for a wildcard; access a mask of READ, WRITE, MKNOD."""

    allow: bool
    type: str
    major: int
    minor: int
    access: int

    def text(self) -> str:
        """The rule as devices.allow and devices.deny take it; "a" alone resets everything."""
        return (
            "a" if self.type == "a" else f"{_node_text((self.type, self.major, self.minor))} {access_text(self.access)}"
        )


class Access(Record):
    """The meaning of a sequence: a default, and the nodes for which some access is the other way round."""

    default_allow: bool
    exceptions: dict[Node, int]


NOTHING = Access(default_allow=False, exceptions={})
EVERYTHING = Access(default_allow=True, exceptions={})

# What every container may do whatever its configuration says, as in the other runtimes; these follow the configured
# rules.
DEFAULT_RULES = tuple(
    Rule(allow=True, type=kind, major=major, minor=minor, access=access)
    for kind, major, minor, access in (
        ("c", ANY, ANY, MKNOD),
        ("b", ANY, ANY, MKNOD),
        ("c", 1, 3, ALL),  # null
        ("c", 1, 8, ALL),  # random
        ("c", 1, 7, ALL),  # full
        ("c", 5, 0, ALL),  # tty
        ("c", 1, 5, ALL),  # zero
        ("c", 1, 9, ALL),  # urandom
        ("c", 136, ANY, ALL),  # /dev/pts/*
        ("c", 5, 2, ALL),  # ptmx
        ("c", 10, 200, ALL),  # net/tun
    )
)


def access_mask(letters: str) -> int:
    """ "rwm" → READ | WRITE | MKNOD."""
    mask = 0
    for letter, bit in _LETTERS:
        if letter in letters:
            mask |= bit
    return mask


def access_text(mask: int) -> str:
    return "".join(letter for letter, bit in _LETTERS if mask & bit)


@lru_cache(maxsize=32)
def wanted(configured: tuple[DeviceRule, ...]) -> Access:
    """What a container may do: its configuration's rules, then the defaults. Raises InvalidSpec.

    Remembered, as most containers of a machine have the same few lists; callers do not change what they get.
    """
    return emulate([*map(from_config, configured), *DEFAULT_RULES])


def from_config(rule: DeviceRule) -> Rule:
    """An absent or empty type is "a", absent numbers are wildcards, absent access is all."""
    return Rule(
        rule.allow,
        rule.type or "a",
        ANY if rule.major is None else rule.major,
        ANY if rule.minor is None else rule.minor,
        access_mask(rule.access) if rule.access else ALL,
    )


def _node_text(node: Node) -> str:
    kind, major, minor = node
    return f"{kind} {'*' if major == ANY else major}:{'*' if minor == ANY else minor}"


def emulate(rules: Iterable[Rule]) -> Access:
    """Play the rules, beginning with nothing allowed. Raises InvalidSpec for a hole in a wildcard, which v1 would
    silently ignore.
    """
    default_allow = False
    exceptions: dict[Node, int] = {}
    for index, rule in enumerate(rules):
        if rule.type == "a":
            default_allow, exceptions = rule.allow, {}
            continue
        node = (rule.type, rule.major, rule.minor)
        if rule.allow != default_allow:
            exceptions[node] = exceptions.get(node, 0) | rule.access
        else:
            _remove_exception(exceptions, node, rule, index)
    return Access(default_allow, exceptions)


def _remove_exception(exceptions: dict[Node, int], node: Node, rule: Rule, index: int) -> None:
    kind, major, minor = node
    for wider in ((kind, ANY, minor), (kind, major, ANY), (kind, ANY, ANY)):
        if wider != node and exceptions.get(wider, 0) & rule.access:
            raise InvalidSpec(
                [
                    Problem(
                        f"/linux/resources/devices/{index}",
                        f'cannot punch a hole for "{rule.text()}" in the wildcard rule '
                        f'"{_node_text(wider)} {access_text(exceptions[wider])}"',
                    )
                ]
            )
    left = exceptions.get(node, 0) & ~rule.access
    if left:
        exceptions[node] = left
    else:
        exceptions.pop(node, None)


def transition(current: Access, target: Access) -> list[Rule]:
    """The fewest writes that lead a v1 devices cgroup from one state to the other, without a moment of less than
    both allow.

    A cgroup that allows by default does not show its exceptions in devices.list, so leaving that state always
    starts anew.
    """
    rules = []
    old = current.exceptions
    if current.default_allow or target.default_allow:
        rules.append(Rule(target.default_allow, "a", ANY, ANY, ALL))
        old = {}
    for node, access in sorted(old.items()):
        if dropped := access & ~target.exceptions.get(node, 0):
            rules.append(Rule(target.default_allow, *node, dropped))
    for node, access in sorted(target.exceptions.items()):
        if gained := access & ~old.get(node, 0):
            rules.append(Rule(not target.default_allow, *node, gained))
    return rules


def parse_list(text: str) -> Access:
    """The state that a v1 ``devices.list`` shows."""
    exceptions: dict[Node, int] = {}
    for line in text.splitlines():
        kind, numbers, letters = line.split()
        if kind == "a":
            return EVERYTHING
        major, minor = (ANY if number == "*" else int(number) for number in numbers.split(":"))
        node = (kind, major, minor)
        exceptions[node] = exceptions.get(node, 0) | access_mask(letters)
    return Access(default_allow=False, exceptions=exceptions)
