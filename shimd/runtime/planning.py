"""What a create or an exec would do, compiled and not done: nothing on the host changes."""

from __future__ import annotations

import os

from shimd.cgroups.manager import CgroupManager, manager
from shimd.oci.model import IntelRdt, Process
from shimd.oci.validate import validate_process
from shimd.plan.compile import compile_create, compile_exec
from shimd.plan.ops import Plan
from shimd.plan.options import CompileOptions
from shimd.plan.options import ExecOptions as CompileExecOptions
from shimd.runtime.bundle import find_rootfs, read_config
from shimd.runtime.model import Container, CreateOptions, Environment
from shimd.runtime.process import cgroup_view


def plan_create(env: Environment, container_id: str, bundle: str, config: bytes | None, options: CreateOptions) -> Plan:
    """See Runtime.plan."""
    bundle = os.path.realpath(bundle)
    read = read_config(bundle, env.host, config)
    path = read.spec.linux.cgroups_path or ""
    cgroup = manager(
        env.host,
        cgroups_path=path,
        container_id=container_id,
        systemd=options.systemd_cgroup,
        annotations=read.spec.annotations,
    )
    plan = compile_create(
        read.spec,
        env.host,
        CompileOptions(
            id=container_id,
            bundle=bundle,
            rootfs=find_rootfs(bundle, read.spec),
            gate=options.gate,
            cgroup_slots=() if cgroup.entry() else _cgroup_slots(env, cgroup),
            cgroup_entry=cgroup.entry() is not None,
            rdt_slots=_rdt_slots(read.spec.linux.intel_rdt),
            cgroups=cgroup_view(cgroup),
            no_pivot=options.no_pivot,
            no_new_keyring=options.no_new_keyring,
            preserve_fds=len(options.preserve_fds),
            seccomp_cache=env.seccomp_cache,
        ),
    )
    return plan._replace(warnings=read.warnings + plan.warnings)


def plan_exec(env: Environment, container: Container, process: Process) -> Plan:
    """See Runtime.plan_exec."""
    warnings = validate_process(process, env.host)
    options = CompileExecOptions(
        id=container.id,
        cgroup_slots=_cgroup_slots(env, container.cgroup),
        cgroup_entry=container.cgroup.exec_entry(container.pid) is not None,
        rdt_slots=_rdt_slots(container.spec.linux.intel_rdt),
        seccomp_cache=env.seccomp_cache,
    )
    plan = compile_exec(process, container.spec, env.host, options)
    return plan._replace(warnings=warnings + plan.warnings)


def _cgroup_slots(env: Environment, cgroup: CgroupManager) -> tuple[str, ...]:
    """As many as there are directories to enter; a process is born into the one of cgroup v2."""
    if env.host.cgroup_mode == "v2":
        return ()
    return tuple(f"cgroup.{index}" for index, _ in enumerate(set(cgroup.paths.values())))


def _rdt_slots(wanted: IntelRdt | None) -> tuple[str, ...]:
    if wanted is None:
        return ()
    return ("rdt.0", "rdt.1") if wanted.enable_monitoring else ("rdt.0",)
