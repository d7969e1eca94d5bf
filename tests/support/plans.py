"""Plans for tests: of a fixed host, so that they are the same everywhere, and as lines that people can read."""

from __future__ import annotations

import json
from typing import Any

from shimd.host.facts import Hierarchy, HostFacts
from shimd.oci.model import Spec
from shimd.oci.read import read_process, read_spec
from shimd.plan.compile import compile_create, compile_exec
from shimd.plan.ops import Plan, Step
from shimd.plan.options import CgroupHierarchy, CgroupView, CompileOptions, ExecOptions
from shimd.plan.wire import to_json

HOST = HostFacts(
    kernel=(6, 12),
    release="6.12.0",
    machine="x86_64",
    cgroup_mode="v2",
    hierarchies=(),
    unified=Hierarchy(("cpu", "memory", "pids"), "/sys/fs/cgroup", "/system.slice"),
    apparmor=True,
    selinux=False,
    effective_caps=2**41 - 1,
    last_cap=40,
    euid=0,
    in_userns=False,
    seccomp_actions=("kill_process", "kill_thread", "trap", "errno", "user_notif", "trace", "log", "allow"),
    seccomp_flags=("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
    proc_kcore=True,
    systemd=False,
    namespaces=("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"),
    page_size=4096,
    cpus_online=4,
)

HYBRID_HOST = HOST._replace(
    cgroup_mode="hybrid",
    hierarchies=(
        Hierarchy(("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", "/"),
        Hierarchy(("name=systemd",), "/sys/fs/cgroup/systemd", "/"),
    ),
    unified=Hierarchy((), "/sys/fs/cgroup/unified", "/"),
)

UNIFIED_VIEW = CgroupView(unified="/sys/fs/cgroup/default/c1")
HYBRID_VIEW = CgroupView(
    hierarchies=(
        CgroupHierarchy("cpu,cpuacct", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/default/c1"),
        CgroupHierarchy("systemd", "name=systemd", "/sys/fs/cgroup/systemd/default/c1"),
    ),
    links=(("cpu", "cpu,cpuacct"), ("cpuacct", "cpu,cpuacct")),
    unified="/sys/fs/cgroup/unified/default/c1",
)

OPTIONS = CompileOptions(
    id="c1", bundle="/bundle", rootfs="/bundle/rootfs", cgroup_slots=("cgroup.0",), cgroups=UNIFIED_VIEW
)


def spec_of(document: dict[str, Any]) -> Spec:
    return read_spec(json.dumps(document).encode())


def create(document: dict[str, Any], host: HostFacts = HOST, **options: Any) -> Plan:
    return compile_create(spec_of(document), host, OPTIONS._replace(**options))


def execute(process: dict[str, Any], document: dict[str, Any], host: HostFacts = HOST, **options: Any) -> Plan:
    """An exec of ``process`` in the container of ``document``."""
    chosen = ExecOptions(id="c1", cgroup_slots=("cgroup.0",))._replace(**options)
    return compile_exec(read_process(json.dumps(process).encode()), spec_of(document), host, chosen)


def texts(steps: tuple[Step, ...]) -> list[str]:
    return [step.op.describe() for step in steps]


def of_type(plan: Plan, kind: type) -> list[Any]:
    return [step.op for step in plan.steps if type(step.op) is kind]


def listing(plan: Plan) -> str:
    """The whole plan: what surrounds the steps first, then a line for each step with the field that asked for it."""
    document = to_json(plan)
    lines = [f"clone: {' '.join(document['clone']) or '-'}"]
    for name, value in document.items():
        if name not in ("clone", "stage", "steps") and value:
            values = value if isinstance(value, list) else [value]
            lines += [f"{name}: {json.dumps(item)}" for item in values]
    for name in ("stage", "steps"):
        if document[name]:
            lines += ["", f"{name}:"]
            lines += [f"  {step['text']}" + f"  <- {step['origin']}" * bool(step["origin"]) for step in document[name]]
    return "\n".join(lines) + "\n"
