"""The rules that a document can break by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shimd.errors import InvalidSpec
from shimd.oci.read import read_process, read_resources, read_spec
from tests.support.specs import containerd_default, every_field

MAP = {"containerID": 0, "hostID": 100000, "size": 1000}


def problems(document: dict[str, Any]) -> list[str]:
    try:
        read_spec(json.dumps(document).encode())
    except InvalidSpec as error:
        return [str(problem) for problem in error.problems]
    return []


def document(**linux: Any) -> dict[str, Any]:
    """containerd's document with members of ``linux`` replaced."""
    result = containerd_default()
    result["linux"].update(linux)
    return result


def with_process(**members: Any) -> dict[str, Any]:
    result = containerd_default()
    result["process"].update(members)
    return result


def with_mounts(*mounts: dict[str, Any]) -> dict[str, Any]:
    return containerd_default() | {"mounts": list(mounts)}


def namespaces(*without: str, extra: tuple[dict[str, str], ...] = ()) -> list[dict[str, str]]:
    kept = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network") if kind not in without]
    return [*kept, *extra]


def user_namespace(**linux: Any) -> dict[str, Any]:
    return document(namespaces=namespaces(extra=({"type": "user"},)), **linux)


# ---- process ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"args": []}, "/process/args: must not be empty"),
        ({"args": [""]}, "/process/args/0: the program's name must not be empty"),
        (
            {"rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 1}] * 2},
            "/process/rlimits/1/type: RLIMIT_CPU is given twice",
        ),
        (
            {"rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}]},
            "/process/rlimits/0: RLIMIT_CPU: soft limit 2 is above the hard one, 1",
        ),
        (
            {"scheduler": {"policy": "SCHED_FIFO"}},
            "/process/scheduler/priority: SCHED_FIFO needs a priority from 1 to 99",
        ),
        (
            {"scheduler": {"policy": "SCHED_OTHER", "priority": 5}},
            "/process/scheduler/priority: 5 is only for SCHED_FIFO and SCHED_RR",
        ),
        (
            {"scheduler": {"policy": "SCHED_BATCH", "period": 5}},
            "/process/scheduler/period: 5 is only for SCHED_DEADLINE",
        ),
        (
            {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 4}},
            "/process/scheduler: SCHED_DEADLINE needs 0 < runtime <= deadline <= period",
        ),
    ],
)
def test_process(members: dict[str, Any], expected: str) -> None:
    assert problems(with_process(**members)) == [expected]


@pytest.mark.parametrize(
    "scheduler",
    [
        {"policy": "SCHED_OTHER", "nice": -20},
        {"policy": "SCHED_RR", "priority": 99},
        {"policy": "SCHED_IDLE"},
        {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3},
        {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2},
    ],
)
def test_good_schedulers(scheduler: dict[str, Any]) -> None:
    assert problems(with_process(scheduler=scheduler)) == []


def test_process_of_exec() -> None:
    with pytest.raises(InvalidSpec) as caught:
        read_process(b'{"args": [], "cwd": "/"}')
    assert [str(problem) for problem in caught.value.problems] == ["/args: must not be empty"]


# ---- names and mounts ------------------------------------------------------------------------------------------------


def test_host_names_need_a_uts_namespace() -> None:
    named = document(namespaces=namespaces("uts")) | {"hostname": "h", "domainname": "d"}
    assert problems(named) == [
        '/hostname: unable to set hostname "h" without a private UTS namespace',
        '/domainname: unable to set domainname "d" without a private UTS namespace',
    ]


def test_host_names_are_64_bytes_at_most() -> None:
    assert problems(containerd_default() | {"hostname": "ä" * 32}) == []
    (problem,) = problems(containerd_default() | {"hostname": "ä" * 33})
    assert problem.endswith("is longer than 64 bytes")


@pytest.mark.parametrize("destination", ["/", "//", "/.", "/a/..", ".", "../.."])
def test_mount_on_the_top_of_the_rootfs(destination: str) -> None:
    (problem,) = problems(with_mounts({"destination": destination, "type": "tmpfs"}))
    assert problem == f'/mounts/0/destination: "{destination}" is the top of the rootfs'


@pytest.mark.parametrize("destination", ["/proc/sys", "/proc/self/attr", "proc/1", "/x/../proc/keys", "/proc/net/dev"])
def test_mount_inside_proc(destination: str) -> None:
    (problem,) = problems(with_mounts({"destination": destination, "type": "bind", "source": "/x"}))
    assert "cannot be mounted because it is inside /proc" in problem


@pytest.mark.parametrize(
    "mount",
    [
        {"destination": "/proc/meminfo", "type": "bind", "source": "/var/lib/lxcfs/proc/meminfo"},
        {"destination": "/proc", "type": "bind", "source": "/proc"},
        {"destination": "/processes", "type": "tmpfs"},
        {"destination": "/x", "source": "/x", "options": ["rbind"]},
    ],
)
def test_good_mounts(mount: dict[str, Any]) -> None:
    assert problems(with_mounts(mount)) == []


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ({"destination": "/proc", "type": "tmpfs"}, '/mounts/0/destination: "/proc" cannot be mounted because it is'),
        ({"destination": "/x"}, "/mounts/0/type: is required for what is no bind mount"),
        ({"destination": "/x", "type": "bind"}, "/mounts/0/source: a bind mount needs one"),
        ({"destination": "/x", "options": ["bind"]}, "/mounts/0/source: a bind mount needs one"),
        (
            {"destination": "/x", "type": "bind", "source": "/x", "options": ["ro", "ridmap"]},
            "/mounts/0: id-mapped mounts must have both uid and gid mappings specified",
        ),
        (
            {"destination": "/x", "type": "bind", "source": "/x", "uidMappings": [MAP]},
            "/mounts/0: id-mapped mounts must have both uid and gid mappings specified",
        ),
        (
            {"destination": "/x", "type": "tmpfs", "uidMappings": [MAP], "gidMappings": [MAP]},
            "/mounts/0: id-mapped mounts are only supported for bind-mounts",
        ),
        (
            {
                "destination": "/x",
                "type": "bind",
                "source": "/x",
                "uidMappings": [MAP],
                "gidMappings": [MAP, MAP | {"containerID": 2000}],
            },
            "/mounts/0/gidMappings/1: host ids from 100000 overlap with those from 100000",
        ),
    ],
)
def test_bad_mounts(mount: dict[str, Any], expected: str) -> None:
    (problem,) = problems(with_mounts(mount))
    assert problem.startswith(expected)


def test_without_a_mount_namespace() -> None:
    shared = document(namespaces=namespaces("mount"), rootfsPropagation="shared")
    shared["root"]["readonly"] = True
    assert [problem.partition(":")[0] for problem in problems(shared)] == [
        "/root/readonly",
        "/mounts",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/linux/rootfsPropagation",
    ]


def test_maps_of_a_mount_may_be_those_of_the_container() -> None:
    spec = user_namespace(uidMappings=[MAP], gidMappings=[MAP])
    spec["mounts"] = [{"destination": "/x", "type": "bind", "source": "/x", "options": ["idmap"]}]
    assert problems(spec) == []
    spec["mounts"][0]["gidMappings"] = [MAP]
    (problem,) = problems(spec)
    assert problem == "/mounts/0: id-mapped mounts must have both uid and gid mappings specified"


# ---- namespaces ------------------------------------------------------------------------------------------------------


def test_duplicate_namespace() -> None:
    double = document(namespaces=[*namespaces(), {"type": "ipc", "path": "/proc/1/ns/ipc"}])
    assert problems(double) == ['/linux/namespaces/5/type: duplicate namespace "ipc"']


def test_mappings_without_user_namespace() -> None:
    assert problems(document(uidMappings=[MAP])) == ["/linux/uidMappings: given without a user namespace"]


def test_user_namespace_without_mappings() -> None:
    assert problems(user_namespace()) == [
        "/linux/uidMappings: a new user namespace needs them",
        "/linux/gidMappings: a new user namespace needs them",
    ]


def test_joined_user_namespace_may_have_mappings() -> None:
    joined = namespaces(extra=({"type": "user", "path": "/proc/1/ns/user"},))
    assert problems(document(namespaces=joined)) == []
    assert problems(document(namespaces=joined, uidMappings=[MAP], gidMappings=[MAP])) == []


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"containerID": 999, "hostID": 5, "size": 1}, "container ids from 999 overlap with those from 0"),
        ({"containerID": 1000, "hostID": 99999, "size": 2}, "host ids from 99999 overlap with those from 100000"),
        ({"containerID": 1000, "hostID": 4294967294, "size": 2}, "host ids 4294967294 + 2 go beyond 4294967294"),
    ],
)
def test_mappings_that_do_not_fit(second: dict[str, int], text: str) -> None:
    mapped = user_namespace(uidMappings=[MAP, second], gidMappings=[MAP])
    assert problems(mapped) == [f"/linux/uidMappings/1: {text}"]


def test_the_identity_map_of_all_ids() -> None:
    whole = {"containerID": 0, "hostID": 0, "size": 2**32 - 1}
    assert problems(user_namespace(uidMappings=[whole], gidMappings=[whole])) == []


def test_too_many_mappings() -> None:
    maps = [{"containerID": n, "hostID": n, "size": 1} for n in range(341)]
    assert problems(user_namespace(uidMappings=maps, gidMappings=[MAP])) == [
        "/linux/uidMappings: 341 mappings are more than the kernel's 340"
    ]


def test_ids_must_be_mapped() -> None:
    high = {"containerID": 1, "hostID": 100000, "size": 10}
    mapped = user_namespace(uidMappings=[high], gidMappings=[MAP])
    mapped["process"]["user"] = {"uid": 11, "gid": 1000, "additionalGids": [5, 2000]}
    assert problems(mapped) == [
        "/process/user/uid: cannot set uid to unmapped user 11 in user namespace",
        "/process/user/gid: cannot set gid to unmapped group 1000 in user namespace",
        "/process/user/additionalGids/1: cannot set gid to unmapped group 2000 in user namespace",
        "/linux/uidMappings: root (0) is not mapped",
    ]


def test_time_offsets() -> None:
    offsets = {"boottime": {"secs": 5}}
    assert problems(document(timeOffsets=offsets)) == ["/linux/timeOffsets: given without a time namespace"]
    joined = namespaces(extra=({"type": "time", "path": "/proc/1/ns/time"},))
    assert problems(document(timeOffsets=offsets, namespaces=joined)) == [
        '/linux/timeOffsets: a joined time namespace ("/proc/1/ns/time") has its own'
    ]
    assert problems(document(timeOffsets=offsets, namespaces=namespaces(extra=({"type": "time"},)))) == []


# ---- sysctl, devices, seccomp, resources -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("kernel.shmmax", "ipc"),
        ("kernel/msgmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("net.ipv4.ip_forward", "network"),
        ("net/ipv4/conf/eno2.100/rp_filter", "network"),
        ("net.ipv4.conf.eno2/100.rp_filter", "network"),
        ("kernel.domainname", "uts"),
    ],
)
def test_sysctls_of_a_namespace(key: str, kind: str) -> None:
    assert problems(document(sysctl={key: "1"})) == []
    (problem,) = problems(document(sysctl={key: "1"}, namespaces=namespaces(kind)))
    assert problem.endswith(f"not allowed without a private {kind} namespace")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("vm.swappiness", "is not in a separate kernel namespace"),
        ("kernel.core_pattern", "is not in a separate kernel namespace"),
        ("kernel.hostname", "conflicts with the hostname field"),
        ("user.max_user_namespaces", "not allowed without a private user namespace"),
        ("network", "is not in a separate kernel namespace"),
        ("net/../kernel/core_pattern", "not the name of a sysctl"),
        ("net.//.kernel.core_pattern", "not the name of a sysctl"),
        ("net/", "not the name of a sysctl"),
        ("/net/core", "not the name of a sysctl"),
        ("", "not the name of a sysctl"),
    ],
)
def test_sysctls_that_are_refused(key: str, text: str) -> None:
    (problem,) = problems(document(sysctl={key: "1"}))
    assert problem == f"/linux/sysctl/{key.replace('/', '~1')}: {text}"


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"path": "/dev/x", "type": "c", "major": 4096, "minor": 0}, "major: 4096 is not between 0 and 4095"),
        ({"path": "/dev/x", "type": "b", "major": 0, "minor": 1 << 20}, "minor: 1048576 is not between 0 and 1048575"),
        ({"path": "/dev/x", "type": "u", "major": -1, "minor": 0}, "major: -1 is not between 0 and 4095"),
        ({"path": "/", "type": "p"}, 'path: "/" is the top of the rootfs'),
        ({"path": "/dev/x", "type": "x"}, 'type: unknown device type "x"'),
    ],
)
def test_devices(device: dict[str, Any], expected: str) -> None:
    assert problems(document(devices=[device])) == [f"/linux/devices/0/{expected}"]


def test_fifo_needs_no_number() -> None:
    assert problems(document(devices=[{"path": "/dev/x", "type": "p", "major": -1, "minor": -1}])) == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"names": [], "action": "SCMP_ACT_ALLOW"}, "names: must not be empty"),
        ({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}, "errnoRet: 1 has no meaning with"),
        ({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}, "errnoRet: 4096 is not an error number"),
        (
            {"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"},
            "names: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            {
                "names": ["read"],
                "action": "SCMP_ACT_LOG",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}],
            },
            "args/0/index: 6 is not between 0 and 5",
        ),
        (
            {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "=="}]},
            'args/0/op: unknown seccomp operator "=="',
        ),
    ],
)
def test_seccomp_rules(rule: dict[str, Any], expected: str) -> None:
    seccomp = {"defaultAction": "SCMP_ACT_KILL", "listenerPath": "/agent.sock", "syscalls": [rule]}
    (problem,) = problems(document(seccomp=seccomp))
    assert problem.startswith(f"/linux/seccomp/syscalls/0/{expected}")


NOTIFY = {"names": ["read"], "action": "SCMP_ACT_NOTIFY"}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/a"},
            "defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        ({"syscalls": [NOTIFY]}, "listenerPath: is required with SCMP_ACT_NOTIFY"),
        ({"syscalls": [NOTIFY], "listenerPath": ""}, "listenerPath: is required with SCMP_ACT_NOTIFY"),
        ({"listenerMetadata": "x"}, "listenerMetadata: given without listenerPath"),
        (
            {"syscalls": [NOTIFY], "listenerPath": "agent.sock"},
            'listenerPath: "agent.sock" is neither an absolute path nor an abstract name (@name)',
        ),
    ],
)
def test_seccomp_listeners(members: dict[str, Any], expected: str) -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", **members}
    assert problems(document(seccomp=seccomp)) == [f"/linux/seccomp/{expected}"]


def test_a_listener_that_nobody_notifies_is_ignored() -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "@agent", "listenerMetadata": "x"}
    assert problems(document(seccomp=seccomp)) == []


def test_errno_of_trace_has_16_bits() -> None:
    rule = {"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535}
    assert problems(document(seccomp={"defaultAction": "SCMP_ACT_KILL", "syscalls": [rule]})) == []


def test_default_action_errno() -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}
    assert problems(document(seccomp=seccomp)) == [
        "/linux/seccomp/defaultErrnoRet: 1 has no meaning with SCMP_ACT_ALLOW"
    ]


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        ({"limit": 100, "swap": 99}, "99 (memory and swap together) is below the memory limit, 100"),
        ({"limit": -1, "swap": 99}, "99 limits swap while memory is unlimited"),
        ({"swap": 99}, "unable to set swap limit 99 without a memory limit"),
    ],
)
def test_swap(memory: dict[str, int], text: str) -> None:
    assert problems(document(resources={"memory": memory})) == [f"/linux/resources/memory/swap: {text}"]


@pytest.mark.parametrize("memory", [{"limit": 100, "swap": 100}, {"limit": 100, "swap": -1}, {"limit": 100, "swap": 0}])
def test_good_swap(memory: dict[str, int]) -> None:
    assert problems(document(resources={"memory": memory})) == []


def test_swap_of_update_may_rely_on_the_old_limit() -> None:
    assert read_resources(b'{"memory": {"swap": 99}}').memory.swap == 99


def test_a_document_with_every_field_breaks_no_rule() -> None:
    assert problems(every_field()) == []
