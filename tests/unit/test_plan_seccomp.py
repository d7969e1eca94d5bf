"""Seccomp filters, by running the programs that come out on the calls that a container could make."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import timeit
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec, Unimplemented
from shimd.oci import model
from shimd.plan import bpf as prefix
from shimd.plan import seccomp
from tests.support.bpf import ARCH_I386, ARCH_X86_64, X32, run
from tests.support.plans import HOST, spec_of
from tests.support.requires import requires
from tests.support.specs import docker_default_seccomp, runc_default

ALLOW = 0x7FFF0000
LOG = 0x7FFC0000
TRACE = 0x7FF00000
NOTIFY = 0x7FC00000
TRAP = 0x00030000
KILL_THREAD = 0
KILL_PROCESS = 0x80000000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS

# x86_64
READ, WRITE, OPEN, CLONE, PERSONALITY, CHROOT, KEXEC_LOAD, SOCKET = 0, 1, 2, 56, 135, 161, 246, 41
MOUNT, ACCT, CLOSE_RANGE, UNUSED = 165, 163, 436, 5000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers here are x86_64's")


def profile(document: dict[str, Any]) -> model.Seccomp:
    config = runc_default()
    config["linux"]["seccomp"] = document
    found = spec_of(config).linux.seccomp
    assert found is not None
    return found


def program(document: dict[str, Any]) -> bytes:
    return seccomp.compile_filter(profile(document), HOST).program


def allow(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **fields}


def arg(index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": value_two}


def deny_all_but(*rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **fields}


# ---- a profile in use ------------------------------------------------------------------------------------------------


needs_profile = requires("file:/usr/share/containers/seccomp.json")


@lru_cache
def docker() -> bytes:
    """With Docker's own default: what the profile does not name is not permitted (Debian's has ENOSYS)."""
    return program({**docker_default_seccomp(), "defaultErrnoRet": errno.EPERM})


@needs_profile
@pytest.mark.parametrize("number", [READ, WRITE, OPEN, CHROOT, CLOSE_RANGE])
def test_allowed_calls_pass(number: int) -> None:
    assert run(docker(), number) == ALLOW


@needs_profile
@pytest.mark.parametrize("number", [KEXEC_LOAD, ACCT])
def test_calls_that_are_not_allowed_are_not_permitted(number: int) -> None:
    assert run(docker(), number) == EPERM


@needs_profile
@pytest.mark.parametrize(("persona", "verdict"), [(0, ALLOW), (8, ALLOW), (0xFFFFFFFF, ALLOW), (1, EPERM)])
def test_personality_takes_few_values(persona: int, verdict: int) -> None:
    assert run(docker(), PERSONALITY, [persona]) == verdict


@needs_profile
@pytest.mark.parametrize("number", [UNUSED, 600, 2**29])
def test_calls_newer_than_the_profile_look_missing(number: int) -> None:
    assert run(docker(), number) == ENOSYS


@needs_profile
def test_numbers_of_other_modes_have_their_own_limit() -> None:
    assert run(docker(), X32 | READ) == ALLOW
    assert run(docker(), X32 | UNUSED) == ENOSYS
    assert run(docker(), 3, arch=ARCH_I386) == ALLOW  # read
    assert run(docker(), UNUSED, arch=ARCH_I386) == ENOSYS


@needs_profile
def test_a_foreign_architecture_is_killed() -> None:
    assert run(docker(), READ, arch=0xC00000B7) == KILL_THREAD


@needs_profile
def test_errno_of_a_rule() -> None:
    """Without CAP_AUDIT_WRITE, netlink audit sockets are EINVAL in Debian's profile."""
    without = docker_default_seccomp(capabilities=())
    assert run(program(without), SOCKET, [16, 0, 9]) == 0x00050000 | errno.EINVAL
    assert run(docker(), SOCKET, [16, 0, 9]) == ALLOW


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        ("KILL", KILL_THREAD),
        ("KILL_THREAD", KILL_THREAD),
        ("KILL_PROCESS", KILL_PROCESS),
        ("TRAP", TRAP),
        ("ERRNO", EPERM),
        ("TRACE", TRACE | errno.EPERM),
        ("LOG", LOG),
        ("NOTIFY", NOTIFY),
    ],
)
def test_actions(action: str, verdict: int) -> None:
    code = program(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/agent.sock",
            "syscalls": [{"names": ["mount"], "action": f"SCMP_ACT_{action}"}],
        }
    )
    assert run(code, MOUNT) == verdict
    assert run(code, READ) == ALLOW
    assert run(code, UNUSED) == ALLOW  # a permissive default lets new calls through to the kernel


@pytest.mark.parametrize("action", ["ERRNO", "TRACE"])
def test_errno_ret(action: str) -> None:
    rule = {"names": ["mount"], "action": f"SCMP_ACT_{action}", "errnoRet": 99}
    assert run(program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}), MOUNT) & 0xFFFF == 99


def test_default_errno_ret() -> None:
    code = program(deny_all_but(allow("read", "close_range"), defaultErrnoRet=errno.EACCES))
    assert run(code, MOUNT) == 0x00050000 | errno.EACCES


@pytest.mark.parametrize(
    ("op", "matching", "others"),
    [
        ("NE", [0, 11], [10]),
        ("LT", [9], [10, 11]),
        ("LE", [9, 10], [11]),
        ("EQ", [10], [9, 11, 10 + 2**32]),
        ("GE", [10, 2**40], [9]),
        ("GT", [11, 2**40], [10]),
    ],
)
def test_operators(op: str, matching: list[int], others: list[int]) -> None:
    code = program(deny_all_but(allow("personality", args=[arg(0, op, 10)]), allow("close_range")))
    assert [run(code, PERSONALITY, [value]) for value in matching] == [ALLOW] * len(matching)
    assert [run(code, PERSONALITY, [value]) for value in others] == [EPERM] * len(others)


def test_masked_comparison_of_clone_flags() -> None:
    """As in Docker's profile: clone without any namespace flag."""
    rule = allow("clone", args=[arg(0, "MASKED_EQ", 0x7E020000, 0)])
    code = program(deny_all_but(rule, allow("close_range")))
    assert run(code, CLONE, [0x01200011]) == ALLOW
    assert run(code, CLONE, [0x10000000]) == EPERM  # CLONE_NEWUSER


def test_conditions_on_several_arguments_must_all_hold() -> None:
    args = [arg(index, "EQ", index + 1) for index in range(6)]
    code = program(deny_all_but(allow("mount", args=args), allow("close_range")))
    assert run(code, MOUNT, [1, 2, 3, 4, 5, 6]) == ALLOW
    assert run(code, MOUNT, [1, 2, 3, 4, 5, 7]) == EPERM


def test_conditions_on_the_same_argument_are_alternatives() -> None:
    code = program(deny_all_but(allow("mount", args=[arg(0, "EQ", 1), arg(0, "EQ", 2)]), allow("close_range")))
    assert [run(code, MOUNT, [value]) for value in (1, 2, 3)] == [ALLOW, ALLOW, EPERM]


def test_rules_that_say_what_the_default_says_are_skipped() -> None:
    code = program(deny_all_but({"names": ["mount"], "action": "SCMP_ACT_ERRNO"}, allow("close_range")))
    assert run(code, MOUNT) == EPERM


def test_the_native_architecture_is_always_there() -> None:
    code = program(deny_all_but(allow("read", "close_range"), architectures=["SCMP_ARCH_X86"]))
    assert run(code, READ) == ALLOW
    assert run(code, 3, arch=ARCH_I386) == ALLOW


def test_an_architecture_that_is_not_in_the_profile_is_killed() -> None:
    code = program(deny_all_but(allow("read"), architectures=["SCMP_ARCH_X86_64"]))
    assert run(code, 3, arch=ARCH_I386) == KILL_THREAD


def test_an_architecture_that_this_machine_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"/linux/seccomp/architectures/1: SCMP_ARCH_S390X is not possible"):
        program(deny_all_but(allow("read"), architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_S390X"]))


def test_unknown_names_are_ignored_with_a_warning() -> None:
    result = seccomp.compile_filter(profile(deny_all_but(allow("read", "no_such_call", "close_range"))), HOST)
    assert result.warnings == ("/linux/seccomp/syscalls: unknown system calls are ignored: no_such_call",)
    assert run(result.program, READ) == ALLOW


def test_a_filter_without_rules() -> None:
    assert run(program({"defaultAction": "SCMP_ACT_ALLOW"}), MOUNT) == ALLOW
    assert run(program({"defaultAction": "SCMP_ACT_ERRNO"}), MOUNT) == EPERM


def test_many_rules_give_a_tree_that_answers_the_same() -> None:
    names = docker_default_seccomp()["syscalls"][1]["names"]
    code = program(deny_all_but(allow(*names)))
    assert run(code, READ) == ALLOW
    assert run(code, KEXEC_LOAD) == EPERM


def test_too_long_for_the_kernel() -> None:
    rules = [allow("mount", args=[arg(0, "EQ", value << 32 | value)]) for value in range(2100)]
    with pytest.raises(InvalidSpec, match="instructions, the kernel takes at most 4096"):
        program(deny_all_but(*rules))


# ---- the calls that look missing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["ALLOW", "LOG", "TRACE"])
def test_no_call_looks_missing_with_a_permissive_default(default: str) -> None:
    code = program(
        {"defaultAction": f"SCMP_ACT_{default}", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_KILL"}]}
    )
    assert run(code, UNUSED) & 0xFFFF0000 == {"ALLOW": ALLOW, "LOG": LOG, "TRACE": TRACE}[default]


@pytest.mark.parametrize("default", ["KILL", "KILL_PROCESS", "TRAP", "ERRNO"])
def test_calls_above_the_highest_named_one_look_missing(default: str) -> None:
    code = program({"defaultAction": f"SCMP_ACT_{default}", "syscalls": [allow("read", "mount")]})
    assert run(code, MOUNT) == ALLOW
    assert run(code, MOUNT + 1) == ENOSYS
    assert run(code, WRITE) != ENOSYS


def test_the_highest_one_counts_whatever_is_said_of_it() -> None:
    rules = [allow("read"), {"names": ["close_range"], "action": "SCMP_ACT_ERRNO"}]
    code = program(deny_all_but(*rules))
    assert run(code, CLOSE_RANGE) == EPERM
    assert run(code, CLOSE_RANGE + 1) == ENOSYS


def test_x32_calls_go_to_the_filter_when_the_profile_has_no_x32() -> None:
    assert run(program(deny_all_but(allow("read"))), X32 | UNUSED) != ENOSYS


@pytest.mark.parametrize(
    ("highest", "arch", "number", "verdict"),
    [
        ({ARCH_X86_64: 100}, ARCH_X86_64, 100, "filter"),
        ({ARCH_X86_64: 100}, ARCH_X86_64, 101, "missing"),
        ({ARCH_X86_64: 100}, ARCH_X86_64, X32 | 101, "filter"),
        ({ARCH_X86_64: 100, 0x4000003E: X32 | 50}, ARCH_X86_64, X32 | 51, "missing"),
        ({ARCH_X86_64: 100, 0x4000003E: X32 | 50}, ARCH_X86_64, 51, "filter"),
        ({0x4000003E: X32 | 50}, ARCH_X86_64, X32 | 51, "missing"),
        ({0x4000003E: X32 | 50}, ARCH_X86_64, 101, "filter"),
        ({ARCH_X86_64: 100}, ARCH_I386, 101, "filter"),
        ({ARCH_X86_64: 100, ARCH_I386: 10}, ARCH_I386, 11, "missing"),
        ({0x40000028: 10}, 0x40000028, 11, "missing"),
        ({0x40000028: 10}, 0x40000028, 0x0F0005, "filter"),  # set_tls
        ({0x80000016: 10}, 0x80000016, 0, "missing"),  # any unknown call of s390x
        ({0x80000016: 10}, 0x80000016, 5, "filter"),
        ({}, ARCH_X86_64, 101, "filter"),
    ],
)
def test_prefix(highest: dict[int, int], arch: int, number: int, verdict: str) -> None:
    filter_behind = prefix.INSTRUCTION.pack(prefix.RET_K, 0, 0, ALLOW)
    code = prefix.enosys_prefix(highest) + filter_behind
    assert run(code, number, arch=arch) == {"filter": ALLOW, "missing": ENOSYS}[verdict]


def test_prefix_of_all_architectures_stays_in_reach() -> None:
    code = prefix.enosys_prefix(dict.fromkeys(range(1, 100), 5))
    rows = list(prefix.INSTRUCTION.iter_unpack(code))
    for position, (opcode, jt, jf, k) in enumerate(rows):
        reach = k if opcode == prefix.JMP_JA else max(jt, jf)
        assert position + 1 + reach <= len(rows)


# ---- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, 4),
        ([], 0),
        (["SECCOMP_FILTER_FLAG_TSYNC"], 0),
        (["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], 6),
        (["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], 0),
    ],
)
def test_flags(flags: list[str] | None, expected: int) -> None:
    document = deny_all_but(allow("read"))
    if flags is not None:
        document["flags"] = flags
    assert seccomp.compile_filter(profile(document), HOST).flags == expected


@pytest.mark.parametrize(("flags", "expected"), [([], 8), (["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], 40), (None, 12)])
def test_flags_of_a_filter_that_notifies(flags: list[str] | None, expected: int) -> None:
    rule = {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}
    document = deny_all_but(rule, listenerPath="/agent.sock", **({} if flags is None else {"flags": flags}))
    assert seccomp.compile_filter(profile(document), HOST).flags == expected


def test_calls_newer_than_a_profile_that_notifies_look_missing() -> None:
    code = program(deny_all_but({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}, listenerPath="/agent.sock"))
    assert run(code, MOUNT) == NOTIFY
    assert run(code, UNUSED) == ENOSYS


def test_spec_allow_only_where_the_kernel_has_it() -> None:
    assert seccomp.compile_filter(profile(deny_all_but(allow("read"))), HOST._replace(seccomp_flags=())).flags == 0


# ---- caches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[model.Seccomp]:
    """The profiles that were compiled since, with the memory emptied."""
    seen = []
    original = seccomp._compile

    def compile_and_note(wanted: model.Seccomp) -> seccomp.Program:
        seen.append(wanted)
        return original(wanted)

    monkeypatch.setattr(seccomp, "_compile", compile_and_note)
    seccomp._compiled.cache_clear()
    return seen


def test_equal_profiles_are_compiled_once(compilations: list[model.Seccomp]) -> None:
    first, second = profile(deny_all_but(allow("read"))), profile(deny_all_but(allow("read")))
    assert seccomp.compile_filter(first, HOST) == seccomp.compile_filter(second, HOST)
    assert len(compilations) == 1


def test_what_is_no_part_of_the_program_makes_no_difference(compilations: list[model.Seccomp]) -> None:
    variants: list[dict[str, Any]] = [{}, {"listenerPath": "/a"}, {"listenerPath": "/b", "listenerMetadata": "x"}]
    for more in (*variants, {"flags": []}):
        seccomp.compile_filter(profile(deny_all_but(allow("read"), **more)), HOST)
    assert len(compilations) == 1


def test_the_disk_keeps_programs_for_the_next_process(compilations: list[model.Seccomp], tmp_path: Path) -> None:
    wanted = profile(deny_all_but(allow("read", "no_such_call")))
    first = seccomp.compile_filter(wanted, HOST, cache=str(tmp_path))
    [entry] = tmp_path.iterdir()
    assert entry.stat().st_mode & 0o7777 == 0o600
    seccomp._compiled.cache_clear()
    assert seccomp.compile_filter(wanted, HOST, cache=str(tmp_path)) == first
    assert len(compilations) == 1


@pytest.mark.parametrize("damage", [b"", b"short", None], ids=["empty", "short", "flipped"])
def test_a_damaged_entry_is_compiled_again(
    compilations: list[model.Seccomp], tmp_path: Path, damage: bytes | None
) -> None:
    wanted = profile(deny_all_but(allow("read")))
    first = seccomp.compile_filter(wanted, HOST, cache=str(tmp_path))
    [entry] = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    seccomp._compiled.cache_clear()
    assert seccomp.compile_filter(wanted, HOST, cache=str(tmp_path)) == first
    assert len(compilations) == 2
    assert entry.read_bytes() == whole


def test_an_entry_of_another_profile_is_not_taken(compilations: list[model.Seccomp], tmp_path: Path) -> None:
    one, other = profile(deny_all_but(allow("read"))), profile(deny_all_but(allow("write")))
    seccomp.compile_filter(one, HOST, cache=str(tmp_path))
    [entry] = tmp_path.iterdir()
    wanted = seccomp.compile_filter(other, HOST, cache=str(tmp_path))
    [target] = set(tmp_path.iterdir()) - {entry}
    target.write_bytes(entry.read_bytes())
    seccomp._compiled.cache_clear()
    assert seccomp.compile_filter(other, HOST, cache=str(tmp_path)) == wanted


def test_a_cache_that_cannot_be_written_is_no_error(compilations: list[model.Seccomp], tmp_path: Path) -> None:
    folder = str(tmp_path / "missing")
    assert run(seccomp.compile_filter(profile(deny_all_but(allow("read"))), HOST, cache=folder).program, READ) == ALLOW


def test_without_libseccomp_a_profile_is_refused(
    compilations: list[model.Seccomp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "seccomp", None)
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(Unimplemented, match="seccomp is not supported"):
        program(deny_all_but(allow("read")))
    assert seccomp.libseccomp_version() == ""


@needs_profile
def test_a_known_profile_costs_microseconds() -> None:
    wanted = profile(docker_default_seccomp())
    seccomp.compile_filter(wanted, HOST)
    best = min(timeit.repeat(lambda: seccomp.compile_filter(wanted, HOST), number=10, repeat=20)) / 10
    assert best < 100e-6  # 3 µs; the best of many, because other tests run beside this one


def test_version() -> None:
    assert re.fullmatch(r"2\.\d+\.\d+", seccomp.libseccomp_version())


def test_profiles_are_json_all_the_way() -> None:
    """The default profile in the shape that engines write, to see that nothing of it gets lost on the way."""
    found = profile(json.loads(json.dumps(deny_all_but(allow("mount", args=[arg(0, "MASKED_EQ", 1, 2)])))))
    assert found.syscalls[0].args == (model.SeccompArg(0, 1, 2, "SCMP_CMP_MASKED_EQ"),)
