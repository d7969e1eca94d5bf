from __future__ import annotations

import itertools
import struct

import pytest

from shimd.cgroups.devices import (
    ALL,
    ANY,
    DEFAULT_RULES,
    EVERYTHING,
    MKNOD,
    NOTHING,
    READ,
    WRITE,
    Access,
    Rule,
    access_mask,
    access_text,
    emulate,
    parse_list,
    transition,
    wanted,
)
from shimd.cgroups.ebpf import device_program
from shimd.errors import InvalidSpec
from shimd.oci.model import DeviceRule


def rule(text: str) -> Rule:
    """ "+c 1:* rw": what a test reads easily."""
    sign, kind, *rest = text[0], text[1], *text[2:].split()
    numbers, letters = rest or ("*:*", "rwm")
    major, minor = (ANY if number == "*" else int(number) for number in numbers.split(":"))
    return Rule(sign == "+", kind, major, minor, access_mask(letters))


def rules(*texts: str) -> list[Rule]:
    return [rule(text) for text in texts]


@pytest.mark.parametrize("letters", ["", "r", "w", "m", "rw", "rm", "wm", "rwm"])
def test_access_letters(letters: str) -> None:
    assert access_text(access_mask(letters)) == letters


def test_rule_text_is_what_the_kernel_reads() -> None:
    assert rule("+c 1:3 rw").text() == "c 1:3 rw"
    assert rule("+b *:* m").text() == "b *:* m"
    assert rule("+c 136:* rwm").text() == "c 136:* rwm"
    assert rule("-a").text() == "a"


class TestEmulation:
    def test_begins_with_nothing(self) -> None:
        assert emulate([]) == NOTHING

    def test_rules_for_one_node_add_up(self) -> None:
        assert emulate(rules("+c 1:3 r", "+c 1:3 w")).exceptions == {("c", 1, 3): READ | WRITE}

    def test_a_later_deny_takes_back(self) -> None:
        assert emulate(rules("+c 1:3 rwm", "-c 1:3 w")).exceptions == {("c", 1, 3): READ | MKNOD}
        assert emulate(rules("+c 1:3 rwm", "-c 1:3 rwm")) == NOTHING

    def test_any_starts_anew(self) -> None:
        assert emulate(rules("+c 1:3 rwm", "-a")) == NOTHING
        assert emulate(rules("+c 1:3 rwm", "+a")) == EVERYTHING
        assert emulate(rules("+a", "-c 1:3 w")) == Access(default_allow=True, exceptions={("c", 1, 3): WRITE})

    def test_deny_of_what_was_never_allowed(self) -> None:
        assert emulate(rules("-b 8:0 rwm")) == NOTHING

    @pytest.mark.parametrize("wide", ["c *:3 r", "c 1:* r", "c *:* r"])
    def test_hole_in_a_wildcard_is_refused(self, wide: str) -> None:
        with pytest.raises(InvalidSpec, match="cannot punch a hole"):
            emulate(rules(f"+{wide}", "-c 1:3 rw"))

    def test_no_hole_without_overlap(self) -> None:
        assert emulate(rules("+c *:* m", "-c 1:3 rw")).exceptions == {("c", ANY, ANY): MKNOD}

    def test_absent_fields_of_the_configuration(self) -> None:
        assert wanted((DeviceRule(allow=True),)).default_allow
        found = wanted((DeviceRule(allow=True, type="c", major=7),))
        assert found.exceptions["c", 7, ANY] == ALL

    def test_a_final_deny_all_does_not_cut_off_the_defaults(self) -> None:
        found = wanted((DeviceRule(allow=False, access="rwm"),))
        assert found == emulate(DEFAULT_RULES)
        assert found.exceptions["c", 1, 3] == ALL
        assert found.exceptions["c", 10, 200] == ALL
        assert found.exceptions["b", ANY, ANY] == MKNOD


class TestTransition:
    def test_from_a_fresh_cgroup(self) -> None:
        texts = [(item.allow, item.text()) for item in transition(EVERYTHING, emulate(rules("+c 1:3 rw")))]
        assert texts == [(False, "a"), (True, "c 1:3 rw")]

    def test_nothing_to_do(self) -> None:
        state = emulate(rules("+c 1:3 rw", "+b *:* m"))
        assert transition(state, state) == []

    def test_only_differences(self) -> None:
        old, new = emulate(rules("+c 1:3 rw", "+c 1:5 r")), emulate(rules("+c 1:3 rm", "+c 1:7 r"))
        steps = [(item.allow, item.text()) for item in transition(old, new)]
        assert steps == [(False, "c 1:3 w"), (False, "c 1:5 r"), (True, "c 1:3 m"), (True, "c 1:7 r")]

    def test_to_a_denylist(self) -> None:
        steps = [(item.allow, item.text()) for item in transition(NOTHING, emulate(rules("+a", "-c 1:3 w")))]
        assert steps == [(True, "a"), (False, "c 1:3 w")]

    def test_hidden_exceptions_of_a_denylist_are_cleared(self) -> None:
        assert [item.text() for item in transition(EVERYTHING, EVERYTHING)] == ["a"]

    def test_playing_the_steps_leads_there(self) -> None:
        states = [
            emulate(rules(*texts))
            for texts in (["+c 1:3 rw"], ["+c 1:3 r", "+b 8:0 rwm"], ["+a", "-c 1:5 m"], [], ["+a"])
        ]
        for old, new in itertools.product(states, states):
            start = [Rule(old.default_allow, "a", ANY, ANY, ALL)]
            start += [Rule(not old.default_allow, *node, mask) for node, mask in old.exceptions.items()]
            assert emulate([*start, *transition(old, new)]) == new


def test_parse_list() -> None:
    assert parse_list("a *:* rwm\n") == EVERYTHING
    assert parse_list("c 1:3 rwm\nb *:* m\nc 136:* r\nc 136:* w\n") == emulate(
        rules("+c 1:3 rwm", "+b *:* m", "+c 136:* rw")
    )
    assert parse_list("") == NOTHING


def run(program: bytes, kind: str, major: int, minor: int, access: int) -> int:
    """The few instructions that the compiler uses, as the kernel would run them; opcodes as in the kernel's
    documentation.
    """
    words = (access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = {1: -1}
    position = 0
    code = list(struct.iter_unpack("=BBhi", program))
    while True:
        op, pair, offset, value = code[position]
        target, source = pair & 15, pair >> 4
        position += 1
        match op:
            case 0x61:
                assert registers[source] == -1, "loads are from the context"
                registers[target] = words[offset // 4]
            case 0xBC:
                registers[target] = registers[source]
            case 0xB4:
                registers[target] = value & 0xFFFFFFFF
            case 0x54:
                registers[target] &= value & 0xFFFFFFFF
            case 0x74:
                registers[target] >>= value
            case 0x56:
                position += offset if registers[target] != value & 0xFFFFFFFF else 0
            case 0x16:
                position += offset if registers[target] == value & 0xFFFFFFFF else 0
            case 0x5E:
                position += offset if registers[target] != registers[source] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"unknown opcode {op:#x}")


def meaning(access: Access, kind: str, major: int, minor: int, mask: int) -> bool:
    """The v1 controller's answer (security/device_cgroup.c, devcgroup_legacy_check_permission)."""
    for (node_kind, node_major, node_minor), covered in access.exceptions.items():
        if node_kind != kind or node_major not in (ANY, major) or node_minor not in (ANY, minor):
            continue
        if access.default_allow and covered & mask:
            return False
        if not access.default_allow and mask & ~covered == 0:
            return True
    return access.default_allow


@pytest.mark.parametrize(
    "sequence",
    [
        [],
        ["+a"],
        ["+c 1:3 rwm"],
        ["+c 1:3 r", "+c *:* m", "+b 8:* rw"],
        ["+a", "-c 1:3 w", "-b 8:0 rwm", "-c 7:* rm"],
        ["+c 4294967295:3000000000 rw", "+b *:5 r"],
    ],
)
def test_program_means_what_the_rules_mean(sequence: list[str]) -> None:
    access = emulate(rules(*sequence))
    program = device_program(access)
    nodes = itertools.product("bc", (0, 1, 7, 8, 4294967295), (0, 3, 5, 3000000000))
    for (kind, major, minor), mask in itertools.product(nodes, range(1, 8)):
        assert run(program, kind, major, minor, mask) == meaning(access, kind, major, minor, mask)


def test_program_of_the_defaults() -> None:
    program = device_program(wanted(()))
    assert run(program, "c", 1, 3, READ | WRITE) == 1
    assert run(program, "c", 136, 17, READ | WRITE) == 1
    assert run(program, "b", 8, 0, MKNOD) == 1
    assert run(program, "b", 8, 0, READ) == 0
    assert run(program, "b", 8, 0, READ | MKNOD) == 0
    assert run(program, "c", 1, 1, READ) == 0
