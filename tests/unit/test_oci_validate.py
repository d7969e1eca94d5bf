"""What a document asks of the host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shimd.errors import InvalidSpec
from shimd.host import facts
from shimd.oci.model import Capabilities, Process, Resources, Spec, User
from shimd.oci.read import read_resources, read_spec
from shimd.oci.validate import Host, validate, validate_process, validate_resources
from tests.support.specs import containerd_default, docker_default_seccomp, runc_default


class Facts(NamedTuple):
    """A host that has everything."""

    cgroup_mode: str = "v2"
    apparmor: bool = True
    selinux: bool = True
    last_cap: int = 40
    euid: int = 0
    seccomp_actions: tuple[str, ...] = ("kill_process", "kill_thread", "trap", "errno", "trace", "log", "allow")
    seccomp_flags: tuple[str, ...] = ("SECCOMP_FILTER_FLAG_LOG",)
    namespaces: tuple[str, ...] = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def spec(process: dict[str, Any] | None = None, **linux: Any) -> Spec:
    document = containerd_default()
    document["process"].update(process or {})
    document["linux"].update(linux)
    return read_spec(json.dumps(document).encode())


def resources(document: dict[str, Any]) -> Resources:
    return read_resources(json.dumps(document).encode())


def refused(subject: Spec, host: Host) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        validate(subject, host)
    return [str(problem) for problem in caught.value.problems]


def refused_resources(document: dict[str, Any], host: Host) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        validate_resources(resources(document), host)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("document", [runc_default(), containerd_default()], ids=["runc", "containerd"])
def test_default_documents_give_no_warning_here(document: dict[str, Any]) -> None:
    document["linux"]["seccomp"] = docker_default_seccomp()
    assert validate(read_spec(json.dumps(document).encode()), facts.probe()) == ()


def test_labels_need_their_security_module() -> None:
    labelled = spec({"apparmorProfile": "p", "selinuxLabel": "l"}, mountLabel="m")
    assert validate(labelled, Facts()) == ()
    assert refused(labelled, Facts(apparmor=False, selinux=False)) == [
        '/process/apparmorProfile: "p": AppArmor is not enabled on this host',
        '/process/selinuxLabel: "l": SELinux is disabled or not supported',
        '/linux/mountLabel: "m": SELinux is disabled or not supported',
    ]


def test_namespaces_that_the_kernel_lacks() -> None:
    host = Facts(namespaces=("pid", "ipc", "uts", "mnt"))
    assert refused(spec(), host) == ["/linux/namespaces/4/type: network namespaces aren't enabled in the kernel"]


def test_unknown_capabilities_are_warned_of() -> None:
    process = Process(capabilities=Capabilities(bounding=("CAP_CHOWN", "CAP_FUTURE"), ambient=("chown",)))
    assert validate_process(process, Facts()) == (
        '/capabilities/bounding/1: ignoring unknown capability "CAP_FUTURE"',
        '/capabilities/ambient/0: ignoring unknown capability "chown"',
    )
    new = Process(capabilities=Capabilities(effective=("CAP_CHECKPOINT_RESTORE",)))
    assert validate_process(new, Facts()) == ()
    assert len(validate_process(new, Facts(last_cap=37))) == 1


def test_seccomp_actions_and_flags_of_the_kernel() -> None:
    wanted = spec(
        seccomp={
            "defaultAction": "SCMP_ACT_KILL",
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}],
        }
    )
    host = Facts(seccomp_actions=("kill_thread", "allow"))
    assert refused(wanted, host) == [
        "/linux/seccomp/syscalls/0/action: SCMP_ACT_LOG is not supported by this kernel",
        "/linux/seccomp/flags/1: SECCOMP_FILTER_FLAG_SPEC_ALLOW is not supported by this kernel",
    ]


def test_rootless() -> None:
    wanted = spec({"user": {"uid": 0, "gid": 0, "additionalGids": [5]}})
    assert refused(wanted, Facts(euid=1000)) == [
        "/process/user/additionalGids: cannot set any additional groups in a rootless container",
        "/linux/namespaces: a rootless container needs a user namespace",
    ]
    assert validate_process(Process(user=User()), Facts(euid=1000)) == ()


def test_rootless_mount_ids_must_be_mapped() -> None:
    document = containerd_default()
    document["process"]["user"] = {"uid": 0, "gid": 0}
    document["linux"]["namespaces"].append({"type": "user"})
    one = [{"containerID": 0, "hostID": 1000, "size": 1}]
    document["linux"] |= {"uidMappings": one, "gidMappings": one}
    document["mounts"][1]["options"] += ["uid=0", "uid=x", "gid=7"]
    wanted = read_spec(json.dumps(document).encode())
    assert validate(wanted, Facts()) == ()
    assert refused(wanted, Facts(euid=1000)) == [
        '/mounts/1/options/6: "gid=7": the id is not mapped',
        '/mounts/2/options/5: "gid=5": the id is not mapped',
    ]


def test_network_sysctl_in_our_own_namespace(tmp_path: Path) -> None:
    link = tmp_path / "net"
    link.symlink_to(f"/proc/{os.getpid()}/ns/net")
    joined = [{"type": "mount"}, {"type": "network", "path": str(link)}]
    wanted = spec(namespaces=joined, sysctl={"net.core.somaxconn": "5"})
    assert refused(wanted, Facts()) == ["/linux/sysctl/net.core.somaxconn: not allowed in the host's network namespace"]
    link.unlink()
    assert validate(wanted, Facts()) == ()


def test_warnings() -> None:
    document = containerd_default() | {"ociVersion": "2.0.0"}
    document["mounts"] += [{"destination": "data", "type": "ext4", "source": "/x", "options": ["bind"]}]
    joined = {"type": "user", "path": "/proc/1/ns/user"}
    one = [{"containerID": 0, "hostID": 1000, "size": 1}]
    document["linux"]["namespaces"].append(joined)
    document["linux"] |= {"uidMappings": one, "gidMappings": one, "personality": {"domain": "LINUX", "flags": ["A"]}}
    assert validate(read_spec(json.dumps(document).encode()), Facts()) == (
        '/ociVersion: "2.0.0" is not a 1.x version of the runtime specification',
        '/mounts/7/type: "ext4" is ignored on a bind mount',
        '/mounts/7/destination: relative destination path "data" is deprecated, using it as relative to /',
        "/linux/uidMappings: the mappings of the joined namespace /proc/1/ns/user are used instead",
        "/linux/personality/flags: ignored: none are defined",
    )


# ---- resources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["v1", "hybrid"])
def test_unified_needs_cgroup_v2(mode: str) -> None:
    unified = {"unified": {"memory.high": "5"}}
    assert refused_resources(unified, Facts(cgroup_mode=mode)) == ["/unified: invalid configuration: needs cgroup v2"]
    assert validate_resources(resources(unified), Facts()) == ()
    assert refused(spec(resources=unified), Facts(cgroup_mode=mode)) == [
        "/linux/resources/unified: invalid configuration: needs cgroup v2"
    ]


def test_realtime_needs_cgroup_v1() -> None:
    realtime = {"cpu": {"realtimeRuntime": 5, "realtimePeriod": 0}}
    assert refused_resources(realtime, Facts()) == [
        "/cpu/realtimeRuntime: 5: realtime limits are not available on cgroup v2"
    ]
    assert validate_resources(resources(realtime), Facts(cgroup_mode="v1")) == ()


def test_limits_without_effect() -> None:
    document = {
        "memory": {"kernel": 5, "swappiness": 5, "disableOOMKiller": True},
        "blockIO": {"leafWeight": 10},
        "network": {"classID": 5},
    }
    assert validate_resources(resources(document), Facts(cgroup_mode="hybrid")) == (
        "/memory/kernel: kernel memory settings are ignored",
    )
    assert [warning.partition(":")[0] for warning in validate_resources(resources(document), Facts())] == [
        "/memory/kernel",
        "/memory/swappiness",
        "/memory/disableOOMKiller",
        "/blockIO/leafWeight",
        "/network",
    ]


def test_settings_that_are_ignored() -> None:
    document = {
        "devices": [{"allow": False, "access": "rwa"}],
        "cpu": {"shares": 100, "idle": 1},
        "unified": {"cpu.weight": "8", "cpu.idle": "1"},
    }
    assert validate_resources(resources(document), Facts()) == (
        '/devices/0/access: "a" is ignored',
        "/cpu/shares: unable to apply both shares and idle: ignored",
        "/unified/cpu.weight: unable to apply both cpu.weight and cpu.idle: ignored",
    )


def test_huge_page_sizes() -> None:
    sizes = ("3MB", "2048KB", "5GB")
    limits = [{"pageSize": size, "limit": 0} for size in sizes]
    assert refused_resources({"hugepageLimits": limits}, Facts()) == [
        f'/hugepageLimits/{number}/pageSize: "{size}" is not a huge page size of this host'
        for number, size in enumerate(sizes)
    ]


@pytest.mark.skipif(not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir(), reason="no 2 MiB huge pages here")
def test_huge_page_size_of_this_host() -> None:
    limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}
    assert validate_resources(resources(limits), Facts()) == ()
