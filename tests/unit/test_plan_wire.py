"""Plans as bytes and as JSON."""

from __future__ import annotations

import hashlib
import json
import marshal
import subprocess
import sys
import time
from typing import Any, get_args

import pytest

from shimd.errors import InternalError
from shimd.plan import ops, wire
from shimd.plan.options import CompileOptions
from tests.support.plans import HOST, create
from tests.support.specs import containerd_default

OPERATIONS: list[ops.Op] = [
    ops.Sync("maps"),
    ops.JoinCgroup(("cgroup.0", "cgroup.1")),
    ops.Setns("ns.0", 2**30),
    ops.Unshare(1),
    ops.TimeOffsets((("boottime", -5, 7),)),
    ops.Dumpable(dumpable=True),
    ops.BecomeRoot(),
    ops.SessionKeyring("name", "label"),
    ops.LoopbackUp(),
    ops.PrepareRoot("/r", 1, ""),
    ops.Mount("/t", "tmpfs", "s", ("a=b",), ops.MountAttr(1, 2, 3, recursive=False), (), copy_up=True, label="l"),
    ops.Remount("/t", ("rw",), ops.MountAttr(1, 2, 3, recursive=True), ()),
    ops.Bind(
        *("/t", "/s", "slot", True, False, ops.MountAttr(1, 2, 3, recursive=False), 4),
        (ops.MountAttr(0, 0, 1, recursive=True), ops.MountAttr(5, 6, 0, recursive=True)),
        inside=True,
        id_map="ids.0",
        map_all=True,
    ),
    ops.MountCgroup1(
        *("/c", (("cpu", "cgroup", "cpu", ""),), (("a", "b"),), ops.MountAttr(1, 0, 0, recursive=False)),
        *((), True),
    ),
    ops.MountCgroup2("/c", "/f", ops.MountAttr(1, 0, 0, recursive=False), ()),
    ops.MakeDevice("/dev/x", "c", 1, 2, 0o600, 3, 4, bind=False),
    ops.Symlink("/dev/fd", "/proc/self/fd", replace=True, only_if="/x"),
    ops.RunHooks("startContainer", (ops.HookSpec("/h", ("h",), ("A=1",), 5),), ("{", "}")),
    ops.PivotRoot("pivot"),
    ops.MakeDirectory("/d", 0o755),
    ops.SetPropagation(1),
    ops.Terminal(0, 24, 80, console_device=True),
    ops.Stdio(0),
    ops.FinalizeReadonly("/"),
    ops.Hostname("h"),
    ops.Domainname("d"),
    ops.Sysctl("net/a", "1"),
    ops.ReadonlyPath("/p"),
    ops.MaskPaths(("/a", "/b"), ""),
    ops.AppArmor("p"),
    ops.SelinuxExec("l"),
    ops.NoNewPrivileges(),
    ops.Scheduler(0, -20, 0, 0, 2**63, 0, 0),
    ops.IoPriority(1, 2),
    ops.Personality(8),
    ops.MemoryPolicy(2 | 1 << 15, (0, 3)),
    ops.CpuAffinity((0, 3)),
    ops.OomScoreAdj(-1000, tolerate=True),
    ops.Umask(0o22),
    ops.Seccomp(4, b"\x00\xff" * 8, send=True),
    ops.BoundingSet(2**41 - 1),
    ops.User(1, 2, None, keep_caps=True),
    ops.Capabilities(1, 2, 3, 4),
    ops.Chdir("/", late=True),
    ops.HomeEnv(0),
    ops.FindProgram(("sh", "-c"), ("A=é\udcff",)),
    ops.WaitStart(),
    ops.CloseFds(2),
    ops.ResetSignals(9),
    ops.Execute(),
]
EVERY = tuple(ops.Step(operation, f"/{index}") for index, operation in enumerate(OPERATIONS))


def test_every_operation_survives_the_wire() -> None:
    assert {type(step.op) for step in EVERY} == set(get_args(ops.Op))
    loaded = wire.loads(wire.dumps(EVERY))
    assert loaded == EVERY
    for before, after in zip(EVERY, loaded, strict=True):
        assert repr(before) == repr(after)  # equal tuples may be of another class, inside too


def test_every_operation_has_one_opcode() -> None:
    assert set(wire.OPCODES.values()) == set(get_args(ops.Op))
    assert len(set(wire.OPCODES.values())) == len(wire.OPCODES)


def test_the_layout_of_this_version() -> None:
    """A daemon and a keeper of different builds must not misread each other. When this fails after a release, raise
    WIRE_VERSION and put the new value here.
    """
    records: list[tuple[int, Any]] = [*wire.OPCODES.items(), (0, ops.MountAttr), (0, ops.HookSpec)]
    layout = ";".join(f"{code} {record.__name__} {','.join(record._fields)}" for code, record in records)
    assert (wire.WIRE_VERSION, hashlib.sha256(layout.encode()).hexdigest()[:16]) == (1, "c8a523dbc5853c0c")


def test_equal_plans_are_equal_bytes() -> None:
    copy = wire.loads(wire.dumps(EVERY))
    assert wire.dumps(copy) == wire.dumps(EVERY)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "decode plan: EOF"),
        (b"\xff\xff", "decode plan: bad marshal data"),
        (wire.dumps(EVERY)[:50], "decode plan: "),
        (marshal.dumps(5), "decode plan: "),
        (marshal.dumps((2, ())), "decode plan: its version is 2, this process understands 1"),
        (marshal.dumps((1, ((99, ""),))), "decode plan: unknown opcode 99"),
        (marshal.dumps((1, ((1, ""),))), "decode plan: Sync has 1 fields, not 0"),
        (marshal.dumps((1, ((6, "", 1),))), "decode plan: .*has 0 fields, not 1"),
        (marshal.dumps((1, ((10, "", "/t"),))), "decode plan: "),
        (marshal.dumps((1, (7,))), "decode plan: "),
        (marshal.dumps((1, 7)), "decode plan: "),
    ],
)
def test_what_is_no_plan_of_this_version(data: bytes, text: str) -> None:
    with pytest.raises(InternalError, match=text):
        wire.loads(data)


def test_json() -> None:
    rows = wire.steps_to_json(EVERY)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[2] == {
        "index": 2,
        "op": "Setns",
        "origin": "/2",
        "text": "join net namespace of ns.0",
        "fields": {"slot": "ns.0", "flags": 2**30},
    }
    by_name = {row["op"]: row["fields"] for row in rows}
    assert by_name["Seccomp"]["program"] == "AP8A/wD/AP8A/wD/AP8A/w=="
    assert by_name["RunHooks"]["hooks"] == [{"path": "/h", "args": ["h"], "env": ["A=1"], "timeout": 5}]
    assert all(row["text"] for row in rows)


def test_json_of_a_plan() -> None:
    document: dict[str, Any] = wire.to_json(create(containerd_default()))
    assert json.loads(json.dumps(document)) == document
    assert document["clone"] == ["ipc", "uts", "net", "pid", "mnt"]
    assert document["rlimits"] == [{"resource": 7, "soft": 1024, "hard": 1024}]
    assert document["steps"][-1]["op"] == "Execute"
    assert document["stage"] == []


def test_a_default_plan_is_compiled_and_decoded_fast() -> None:
    from shimd.plan.compile import compile_create
    from tests.support.plans import spec_of

    spec, options = spec_of(containerd_default()), CompileOptions("c1", "/b", "/b/rootfs")
    data = wire.dumps(compile_create(spec, HOST, options).steps)
    assert _seconds(lambda: compile_create(spec, HOST, options)) < 400e-6  # 70 µs; the margin is for busy machines
    assert _seconds(lambda: wire.loads(data)) < 200e-6  # 45 µs


def _seconds(action: Any) -> float:
    """The best of some runs: what else the machine does only adds to it."""
    best = 1.0
    for _ in range(50):
        began = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - began)
    return best


def test_reading_a_plan_imports_little() -> None:
    """Init and keeper import this; what compiles plans stays out of them."""
    code = "import sys, shimd.plan.wire; print(*sorted(m for m in sys.modules if m.startswith('shimd.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in found if not name.startswith("shimd.linux")] == [
        "shimd.errors",
        "shimd.plan",
        "shimd.plan.ops",
        "shimd.plan.rootfs_ops",
        "shimd.plan.wire",
        "shimd.records",
        "shimd.typed",
    ]
