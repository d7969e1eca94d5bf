"""Reading documents: what comes out of good ones, and what is said of bad ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec
from shimd.oci import model, tables
from shimd.oci.fields import MAX_PROBLEMS, ListOf, MapOf, ObjectOf, pointer
from shimd.oci.read import MAX_BYTES, read_process, read_resources, read_spec, read_spec_cached
from tests.support.specs import containerd_default, docker_default_seccomp, every_field, runc_default


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


def problems(document: object, read: Any = read_spec) -> list[str]:
    data = document if isinstance(document, bytes) else encode(document)
    with pytest.raises(InvalidSpec) as caught:
        read(data)
    return [str(problem) for problem in caught.value.problems]


def changed(path: str, value: object) -> dict[str, Any]:
    """containerd's document with one member replaced."""
    document = containerd_default()
    *parents, last = path.split("/")
    target = document
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return document


def objects(reader: object, at: str = "") -> Iterator[tuple[str, ObjectOf]]:
    """Every table below a reader with the place of its object, as in docs/config.md."""
    if isinstance(reader, ObjectOf):
        yield at, reader
        for name, field in reader.fields.items():
            yield from objects(field, f"{at}.{name}" if at else name)
    elif isinstance(reader, ListOf):
        yield from objects(reader.item, f"{at}[]")
    elif isinstance(reader, MapOf):
        yield from objects(reader.item, f"{at}.*")


def snake_case(name: str) -> str:
    spread = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z])([A-Z][a-z])", r"\1_\2", spread).lower()


# ---- the tables ------------------------------------------------------------------------------------------------------


def test_fields_of_tables_are_those_of_their_records_in_order() -> None:
    for at, table in objects(tables.SPEC):
        expected = [snake_case(name) + ("_" if name == "class" else "") for name in table.fields]
        assert expected == list(table.record._fields), at


def test_the_document_with_every_field_has_every_field() -> None:
    for at, table in objects(tables.SPEC):
        given = [name for node in nodes(every_field(), at) for name in node]
        assert set(given) == set(table.fields), at


def nodes(node: Any, at: str) -> Iterator[Any]:
    """The values at a place such as mounts[].uidMappings[]."""
    if not at:
        yield node
        return
    head, _, rest = at.partition(".")
    name = head.removesuffix("[]")
    found = node.values() if head == "*" else [node[name]] if name in node else []
    for value in found:
        for item in value if head.endswith("[]") else [value]:
            yield from nodes(item, rest)


# ---- good documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [runc_default(), containerd_default()], ids=["runc", "containerd"])
def test_default_documents(document: dict[str, Any]) -> None:
    spec = read_spec(encode(document))
    assert spec.process.args == ("/bin/true",)
    assert [mount.destination for mount in spec.mounts] == [mount["destination"] for mount in document["mounts"]]
    assert spec.linux.resources.devices == (model.DeviceRule(allow=False, access="rwm"),)


def test_docker_seccomp() -> None:
    profile = docker_default_seccomp()
    seccomp = read_spec(encode(changed("linux/seccomp", profile))).linux.seccomp
    assert seccomp is not None
    assert seccomp.flags is None
    assert len(seccomp.syscalls) == len(profile["syscalls"])
    assert all(rule.names for rule in seccomp.syscalls)


def test_every_field_arrives() -> None:
    document = every_field()
    del document["mounts"][1]["uidMappings"], document["mounts"][1]["gidMappings"]
    for name in ("netDevices", "intelRdt", "memoryPolicy"):
        del document["linux"][name]
    for name in ("listenerPath", "listenerMetadata"):
        del document["linux"]["seccomp"][name]
    spec = read_spec(encode(document))
    assert spec.process.user == model.User(1000, 1000, 0o22, (5, 6))
    assert spec.process.rlimits == (model.Rlimit("RLIMIT_CORE", hard=2**64 - 1, soft=0),)
    assert spec.process.io_priority == model.IoPriority("IOPRIO_CLASS_BE", 4)
    assert spec.linux.resources.memory.limit == 9223372036854771712
    assert spec.linux.seccomp is not None
    assert spec.linux.seccomp.syscalls[0].args[0] == model.SeccompArg(0, 2**64 - 1, 7, "SCMP_CMP_MASKED_EQ")
    assert dict(spec.linux.time_offsets) == {
        "monotonic": model.TimeOffset(-1, 999999999),
        "boottime": model.TimeOffset(2**40, 0),
    }
    assert spec.hooks.start_container[0].timeout == 5


def test_absent_and_null_are_the_same() -> None:
    document = containerd_default()
    plain = read_spec(encode(document))
    document["hooks"] = document["annotations"] = document["hostname"] = None
    document["process"]["user"]["umask"] = document["linux"]["seccomp"] = document["linux"]["resources"]["cpu"] = None
    assert read_spec(encode(document)) == plain
    assert plain.linux.resources.cpu == model.Cpu()


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    document = containerd_default()
    plain = read_spec(encode(document))
    document["windows"] = document["process"]["commandLine"] = document["linux"]["later"] = [1.5, {"a": 1e300}]
    document["mounts"][0]["x"] = "\ud800"
    assert read_spec(encode(document)) == plain


def test_the_case_of_names_does_not_matter() -> None:
    document = b'{"Memory": {"LIMIT": 1}, "hugepagelimits": [{"pagesize": "2MB", "limit": 3}], "CPU": {"Cpus": "0"}}'
    resources = read_resources(document)
    assert resources.memory.limit == 1
    assert resources.hugepage_limits == (model.HugepageLimit("2MB", 3),)
    assert resources.cpu.cpus == "0"


def test_the_last_of_two_equal_names_wins() -> None:
    process = b'{"cwd": 5, "cwd": "/", "args": ["a"]}'
    assert read_process(process).cwd == "/"


def test_maps_cannot_be_changed() -> None:
    spec = read_spec(encode(changed("annotations", {"a": "b"})))
    with pytest.raises(TypeError):
        spec.annotations["a"] = "c"  # type: ignore[index]


def test_empty_strings_are_absent() -> None:
    document = changed("linux/mountLabel", "")
    document["linux"]["namespaces"][0]["path"] = document["hostname"] = document["linux"]["rootfsPropagation"] = ""
    spec = read_spec(encode(document))
    assert (spec.hostname, spec.linux.mount_label, spec.linux.rootfs_propagation) == (None, None, None)
    assert spec.linux.namespaces[0].path is None


def test_empty_flags_are_not_absent_flags() -> None:
    seccomp = read_spec(
        encode(changed("linux/seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "flags": []}))
    ).linux.seccomp
    assert seccomp is not None
    assert seccomp.flags == ()


def test_empty_seccomp_is_none() -> None:
    assert read_spec(encode(changed("linux/seccomp", {}))).linux.seccomp is None


def test_what_engines_write_for_unset() -> None:
    document = changed("linux/resources/memory", {"swappiness": 2**64 - 1})
    document["linux"]["resources"]["devices"] = [{"access": "m", "type": "c", "major": -1, "minor": -1}]
    document["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o20666}]
    linux = read_spec(encode(document)).linux
    assert linux.resources.memory.swappiness is None
    assert linux.resources.devices == (model.DeviceRule(allow=False, type="c", access="m"),)
    assert linux.devices[0].file_mode == 0o666


def test_cache_returns_the_same_record_for_equal_bytes() -> None:
    data = encode(containerd_default(container_id="cached"))
    assert read_spec_cached(data) is read_spec_cached(bytes(bytearray(data)))
    large = data + b" " * (64 << 10)
    assert read_spec_cached(large) is not read_spec_cached(large)
    assert read_spec_cached(large) == read_spec_cached(data)


def test_resources_of_update() -> None:
    assert read_resources(b'{"memory": {"swap": 5}}').memory.swap == 5
    assert read_resources(b"{}") == model.Resources()


# ---- bad documents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"linux":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b" " * (MAX_BYTES + 1), "bytes are more than"),
        (b"null", "expected an object, got null"),
        (b"[]", "expected an object, got an array"),
        (b"5", "expected an object, got 5"),
    ],
)
def test_what_is_no_document(data: bytes, text: str) -> None:
    (problem,) = problems(data)
    assert problem.startswith("/: ")
    assert text in problem


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("hostname", 5, "/hostname: expected a string, got 5"),
        ("hostname", ["a"], "/hostname: expected a string, got an array"),
        ("root", "rootfs", '/root: expected an object, got "rootfs"'),
        ("root", {}, "/root/path: is required"),
        ("root/path", "", '/root/path: "" is not a path'),
        ("process/terminal", 1, "/process/terminal: expected true or false, got 1"),
        ("process/terminal", "true", '/process/terminal: expected true or false, got "true"'),
        ("process/args", "sh", '/process/args: expected an array, got "sh"'),
        ("process/args", ["sh", None], "/process/args/1: expected a string, got null"),
        ("process/args", ["sh", "a\0b"], '/process/args/1: "a\\u0000b" contains a NUL byte'),
        ("process/args", ["sh", "\ud800"], '/process/args/1: "\\ud800" is not valid Unicode'),
        ("process/cwd", "home", '/process/cwd: "home" is not an absolute path'),
        ("process/cwd", "", '/process/cwd: "" is not an absolute path'),
        ("process/env", ["A"], '/process/env/0: "A" is not of the form NAME=value'),
        ("process/env", ["=A"], '/process/env/0: "=A" is not of the form NAME=value'),
        ("process/user/uid", 2**32 - 1, "/process/user/uid: 4294967295 is not between 0 and 4294967294"),
        ("process/user/uid", -1, "/process/user/uid: -1 is not between 0 and 4294967294"),
        ("process/user/uid", True, "/process/user/uid: expected an integer, got true"),
        ("process/user/gid", 1.0, "/process/user/gid: expected an integer, got 1.0"),
        ("process/user/gid", 1e3, "/process/user/gid: expected an integer, got 1000.0"),
        ("process/user/additionalGids", [0, "5"], '/process/user/additionalGids/1: expected an integer, got "5"'),
        ("process/consoleSize", {"height": 70000, "width": 1}, "/process/consoleSize/height: 70000 is not between"),
        ("process/consoleSize", {"height": 1}, "/process/consoleSize/width: is required"),
        ("process/oomScoreAdj", -1001, "/process/oomScoreAdj: -1001 is not between -1000 and 1000"),
        (
            "process/rlimits",
            [{"type": "RLIMIT_FOO", "hard": 1, "soft": 1}],
            '/process/rlimits/0/type: unknown resource limit "RLIMIT_FOO"',
        ),
        ("process/rlimits", [{"type": "RLIMIT_CPU", "soft": 1}], "/process/rlimits/0/hard: is required"),
        (
            "process/rlimits",
            [{"type": "RLIMIT_CPU", "hard": 2**64, "soft": 1}],
            "/process/rlimits/0/hard: 18446744073709551616 is not between",
        ),
        (
            "process/scheduler",
            {"policy": "SCHED_FAIR"},
            '/process/scheduler/policy: unknown scheduling policy "SCHED_FAIR"',
        ),
        ("process/scheduler", {"policy": "SCHED_OTHER", "nice": 20}, "/process/scheduler/nice: 20 is not between"),
        ("process/ioPriority", {"class": "IOPRIO_CLASS_NONE"}, "/process/ioPriority/class: unknown I/O priority class"),
        ("process/ioPriority", {"class": "IOPRIO_CLASS_RT", "priority": 8}, "/process/ioPriority/priority: 8 is not"),
        ("process/execCPUAffinity", {"initial": "3-1"}, '"3-1" is not a CPU list: "3-1" ends before it begins'),
        ("process/execCPUAffinity", {"final": "a"}, '"a" is not a CPU list'),
        ("process/execCPUAffinity", {"final": "65537"}, '"65537" is not a CPU list: 65537 is above 65536'),
        ("process/execCPUAffinity", {"final": ","}, '"," is not a CPU list: no members'),
        ("mounts", [{"type": "proc"}], "/mounts/0/destination: is required"),
        ("mounts", [None], "/mounts/0: expected an object, got null"),
        ("hooks", {"poststop": [{"path": "hook"}]}, '/hooks/poststop/0/path: "hook" is not an absolute path'),
        ("hooks", {"prestart": [{"path": "/h", "timeout": 0}]}, "/hooks/prestart/0/timeout: 0 is not between 1"),
        ("hooks", {"prestart": [{"path": "/h", "env": ["A"]}]}, '/hooks/prestart/0/env/0: "A" is not of the form'),
        ("annotations", {"a/b~c": 1}, "/annotations/a~1b~0c: expected a string, got 1"),
        ("annotations", {"\ud800": "a"}, '"\\ud800" is not valid Unicode'),
        ("linux/namespaces", [{"type": "utz"}], '/linux/namespaces/0/type: unknown namespace type "utz"'),
        (
            "linux/namespaces",
            [{"type": "pid", "path": "ns"}],
            '/linux/namespaces/0/path: "ns" is not an absolute path',
        ),
        ("linux/rootfsPropagation", "open", '/linux/rootfsPropagation: unknown propagation "open"'),
        ("linux/maskedPaths", ["proc"], '/linux/maskedPaths/0: "proc" is not an absolute path'),
        ("linux/personality", {"domain": "BSD"}, '/linux/personality/domain: unknown personality "BSD"'),
        ("linux/timeOffsets", {"realtime": {"secs": 1}}, '/linux/timeOffsets/realtime: unknown clock "realtime"'),
        (
            "linux/timeOffsets",
            {"monotonic": {"nanosecs": 10**9}},
            "/linux/timeOffsets/monotonic/nanosecs: 1000000000 is not between 0 and 999999999",
        ),
        (
            "linux/seccomp",
            {"defaultAction": "SCMP_ACT_DENY"},
            '/linux/seccomp/defaultAction: unknown seccomp action "SCMP_ACT_DENY"',
        ),
        (
            "linux/seccomp",
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}]},
            "/linux/seccomp/defaultAction: is required",
        ),
        ("linux/resources/memory", {"limit": -2}, "/linux/resources/memory/limit: -2 is not between -1"),
        ("linux/resources/memory", {"limit": 2**63}, "/linux/resources/memory/limit: 9223372036854775808 is not"),
        ("linux/resources/memory", {"swappiness": 101}, "/linux/resources/memory/swappiness: 101 is not between"),
        ("linux/resources/cpu", {"cpus": "0-3;7"}, '/linux/resources/cpu/cpus: "0-3;7" is not a list like 0-3,7'),
        ("linux/resources/cpu", {"idle": 2}, "/linux/resources/cpu/idle: 2 is not between 0 and 1"),
        ("linux/resources/blockIO", {"weight": 1001}, "/linux/resources/blockIO/weight: 1001 is not between"),
        (
            "linux/resources/hugepageLimits",
            [{"pageSize": "2M", "limit": 1}],
            '/linux/resources/hugepageLimits/0/pageSize: "2M" is not a size like 2MB',
        ),
        (
            "linux/resources/devices",
            [{"allow": True, "access": "x"}],
            '/linux/resources/devices/0/access: "x" is not made of the letters r, w and m',
        ),
        ("linux/resources/devices", [{"allow": True}], "/linux/resources/devices/0/access: is required"),
        (
            "linux/resources/devices",
            [{"type": "u", "access": "r"}],
            '/linux/resources/devices/0/type: unknown device type "u"',
        ),
        ("linux/resources/unified", {"../memory.max": "1"}, "/linux/resources/unified/..~1memory.max: "),
        ("linux/resources/unified", {"memory": "1"}, '"memory" is not a control file'),
        ("linux/resources/unified", {"cgroup.procs": "1"}, '"cgroup.procs" is not a control file that limits'),
        ("linux/resources/rdma", {"a b": {}}, '/linux/resources/rdma/a b: "a b" is not a name'),
        (
            "linux/resources/network",
            {"priorities": [{"name": "e 0", "priority": 1}]},
            '/linux/resources/network/priorities/0/name: "e 0" is not a name',
        ),
    ],
)
def test_one_problem(path: str, value: object, problem: str) -> None:
    (found,) = problems(changed(path, value))
    assert problem in found


@pytest.mark.parametrize("missing", ["process", "root"])
def test_required_members(missing: str) -> None:
    document = containerd_default()
    del document[missing]
    assert problems(document) == [f"/{missing}: is required"]


def test_all_problems_come_at_once_in_document_order() -> None:
    document = {
        "linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}], "resources": {"pids": {"limit": "many"}}},
        "root": {"path": "rootfs", "readonly": "no"},
        "hostname": "h",
        "process": {"cwd": "x", "args": []},
    }
    assert problems(document) == [
        '/linux/namespaces/1/type: duplicate namespace "pid"',
        '/linux/resources/pids/limit: expected an integer, got "many"',
        '/root/readonly: expected true or false, got "no"',
        '/hostname: unable to set hostname "h" without a private UTS namespace',
        '/process/cwd: "x" is not an absolute path',
        "/process/args: must not be empty",
    ]


def test_one_mistake_is_reported_once() -> None:
    """A misspelt namespace does not also give complaints about its absence."""
    document = changed("linux/namespaces", [{"type": "mnt"}, {"type": "uts"}])
    assert problems(document) == ['/linux/namespaces/0/type: unknown namespace type "mnt"']


def test_problems_are_bounded() -> None:
    document = changed("mounts", [{}] * 5000)
    found = problems(document)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == f"/: and {5000 - MAX_PROBLEMS} more problems"


def test_texts_are_bounded_and_encodable() -> None:
    (found,) = problems(changed("process/terminal", "\ud800é" * 10_000))
    assert len(found) < 200
    found.encode()


def test_pointers_are_escaped() -> None:
    assert pointer("a/b", "m~n", 0, "") == "/a~1b/m~0n/0/"


def test_document_is_named() -> None:
    with pytest.raises(InvalidSpec, match=r"^process: /cwd: is required"):
        read_process(b'{"args": ["a"]}')
    with pytest.raises(InvalidSpec, match=r"^resources: /cpu/idle: 5 is not"):
        read_resources(b'{"cpu": {"idle": 5}}')


def test_the_documentation_lists_exactly_the_fields_of_the_tables() -> None:
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`([^`]*)`|\(the document\)) \| ((?:`\w+` ?)+)\|", text, re.MULTILINE)
    documented = {at: re.findall(r"`(\w+)`", fields) for at, fields in rows}
    assert documented == {at: list(table.fields) for at, table in objects(tables.SPEC)}
