"""From a configuration to the plan of a launch: pure functions, in the order in which init acts.

Both take records that ``shimd.oci`` has read and validated, and raise InvalidSpec for what only the compiler knows to
be wrong. The same arguments give equal plans.
"""

from __future__ import annotations

from shimd.host.facts import HostFacts
from shimd.linux import caps
from shimd.linux.process import CLONE_NEWPID, CLONE_NEWUSER
from shimd.oci import model
from shimd.plan import namespaces, ops, process, rootfs
from shimd.plan.builder import Builder
from shimd.plan.options import CompileOptions, ExecOptions


def compile_create(spec: model.Spec, host: HostFacts, options: CompileOptions) -> ops.Plan:
    """The plan of a container's init; with ``options.gate`` it waits for ``start``."""
    builder = Builder(host)
    layout = namespaces.layout(spec.linux, host)
    stage = _add_start(builder, spec, layout, options)
    namespaces.add_identity(builder, layout)
    _add_keyring(builder, spec.process, options)
    rootfs.add_rootfs(builder, spec, options, layout)
    rootfs.add_entry(builder, spec, options, layout)
    process.add_stdio(builder, "/process", spec.process, console_device=True)
    rootfs.add_finish(builder, spec)

    deny_setgroups = namespaces.denies_setgroups(spec.linux, host)
    plan = process.ProcessPlan(
        at="/process",
        process=spec.process,
        linux=spec.linux,
        user_namespace=bool(layout.all & CLONE_NEWUSER),
        groups=not deny_setgroups,
        umask=spec.process.user.umask,
        options=options,
    )
    process.add_scheduling(builder, plan)
    builder.add(ops.CpuAffinity(()))
    builder.add(ops.Sync("ready"))
    process.add_identity(builder, plan)
    process.add_program(builder, plan)
    if options.gate:
        builder.add(ops.WaitStart(dumpable=host.euid != 0))
    hooks = spec.hooks.start_container
    if hooks:
        process.add_last_filter(builder, plan)  # they are the container's programs, too
    rootfs.add_hooks(builder, spec, options, "startContainer", hooks, "created")
    process.add_execute(builder, plan, filtered=bool(hooks))

    builder.raise_problems("config.json")
    return ops.Plan(
        clone=layout.clone,
        stage=stage,
        steps=builder.take_steps(),
        namespaces=layout.joined,
        net_devices=namespaces.net_devices(spec.linux),
        id_maps=tuple(builder.id_maps.values()),
        trees=tuple(builder.trees),
        uid_map=namespaces.id_maps(spec.linux.uid_mappings) if layout.new & CLONE_NEWUSER else (),
        gid_map=namespaces.id_maps(spec.linux.gid_mappings) if layout.new & CLONE_NEWUSER else (),
        deny_setgroups=deny_setgroups,
        rlimits=process.rlimits(spec.process),
        hooks_prestart=rootfs.hook_specs(spec.hooks.prestart + spec.hooks.create_runtime),
        warnings=tuple(builder.warnings),
    )


def compile_exec(document: model.Process, spec: model.Spec, host: HostFacts, options: ExecOptions) -> ops.Plan:
    """The plan of another process in the container of ``spec``; the slot ``init`` is the pidfd of its init.

    What ``document`` leaves out and a container has one of, it takes from the container's own process.
    """
    builder = Builder(host)
    wanted = _inherit(document, spec.process)
    affinity = wanted.exec_cpu_affinity or model.CpuAffinity()
    flags = namespaces.layout(spec.linux, host).all
    traced = _may_be_traced(wanted, spec, host, flags)
    stage = _add_container(builder, wanted, flags, options, enter=not traced)
    _add_keyring(builder, wanted, options)
    process.add_stdio(builder, "", wanted, console_device=False)
    if wanted.apparmor_profile:
        builder.add(ops.AppArmor(wanted.apparmor_profile), "/apparmorProfile")

    plan = process.ProcessPlan(
        at="",
        process=wanted,
        linux=spec.linux,
        user_namespace=bool(flags & CLONE_NEWUSER),
        groups=not namespaces.denies_setgroups(spec.linux, host),
        umask=process.DEFAULT_UMASK if wanted.user.umask is None else wanted.user.umask,
        options=options,
    )
    process.add_scheduling(builder, plan)
    if affinity.final or not affinity.initial:
        builder.add(ops.CpuAffinity(process.cpus(affinity.final)), "/execCPUAffinity/final" if affinity.final else "")
    if traced:
        _refuse_listener(builder, wanted, spec)
        process.add_identity(builder, plan)
        stage += builder.take_steps()
        _add_entry(builder, options)
        builder.add(ops.Sync("ready"))
    else:
        builder.add(ops.Sync("ready"))
        process.add_identity(builder, plan)
    process.add_program(builder, plan)
    process.add_execute(builder, plan)

    builder.raise_problems("process")
    return ops.Plan(
        clone=0,
        stage=stage,
        steps=builder.take_steps(),
        rlimits=process.rlimits(wanted),
        warnings=tuple(builder.warnings),
    )


def _may_be_traced(wanted: model.Process, spec: model.Spec, host: HostFacts, flags: int) -> bool:
    """Whether a process of the container could trace one that joins it, which has all of the host's privileges at
    first (CVE-2016-9962): with CAP_SYS_PTRACE of the host's user namespace, not even its not being dumpable keeps it
    off. Then it is made only when it has no more left than the container: the stage, in no pid namespace of the
    container's, gives up the privileges.
    """
    sets = spec.process.capabilities
    tracer = sets is None or any("CAP_SYS_PTRACE" in names for names in (sets.bounding, sets.permitted, sets.effective))
    if not tracer or host.euid != 0 or not flags & CLONE_NEWPID or flags & CLONE_NEWUSER:
        return False
    # Limits are set on the finished process, which prlimit(2) allows for another user's only with this capability.
    same_user = wanted.user.uid == wanted.user.gid == 0
    return same_user or not wanted.rlimits or host.has_cap(caps.CAP_SYS_RESOURCE)


def _refuse_listener(builder: Builder, wanted: model.Process, spec: model.Spec) -> None:
    """A stage is not to wait for an agent: the runtime, which has to fetch the listener first, waits for the stage."""
    profile = spec.linux.seccomp
    if profile is None or wanted.no_new_privileges:
        return
    from shimd.plan.seccomp import notifies

    if notifies(profile):
        text = "is needed for a filter with SCMP_ACT_NOTIFY in a container with CAP_SYS_PTRACE"
        builder.refuse("/noNewPrivileges", text)


def _add_start(
    builder: Builder, spec: model.Spec, layout: namespaces.Layout, options: CompileOptions
) -> tuple[ops.Step, ...]:
    """Cgroups and joined namespaces; returns the steps of the stage."""
    if namespaces.precedes_clone(layout, spec.process.oom_score_adj):
        _add_birth(builder, "/process", spec.process, options)
        namespaces.add_joins(builder, layout)
        stage = builder.take_steps()
        _add_entry(builder, options)
        return stage
    namespaces.add_joins(builder, layout, CLONE_NEWPID)
    stage = builder.take_steps()
    _add_birth(builder, "/process", spec.process, options)
    _add_entry(builder, options)
    namespaces.add_joins(builder, layout, ~CLONE_NEWPID)
    return stage


def _add_container(
    builder: Builder, wanted: model.Process, flags: int, options: ExecOptions, *, enter: bool
) -> tuple[ops.Step, ...]:
    """Cgroups and namespaces of a container that runs; returns the steps of the stage. ``enter``: the process enters
    its cgroup as soon as it is there.
    """
    stage: tuple[ops.Step, ...] = ()
    if flags & CLONE_NEWPID and builder.host.euid == 0:
        # All of the stage, so that a launcher can do it without a process in between; the new process does the rest.
        builder.add(ops.Setns("init", CLONE_NEWPID), "/linux/namespaces")
        stage = builder.take_steps()
        flags &= ~CLONE_NEWPID
    if wanted.exec_cpu_affinity and wanted.exec_cpu_affinity.initial:
        builder.add(ops.CpuAffinity(process.cpus(wanted.exec_cpu_affinity.initial)), "/execCPUAffinity/initial")
    _add_birth(builder, "", wanted, options)
    late = bool(flags & CLONE_NEWPID)  # an unprivileged caller has to enter the user namespace first
    if enter and not late:
        _add_entry(builder, options)
    if flags:
        builder.add(ops.Setns("init", flags), "/linux/namespaces")
    if late:
        stage = builder.take_steps()
        if enter:
            _add_entry(builder, options)
    if flags & CLONE_NEWUSER:
        builder.add(ops.BecomeRoot())
    return stage


def _add_birth(builder: Builder, at: str, wanted: model.Process, options: CompileOptions | ExecOptions) -> None:
    process.add_oom_score(builder, at, wanted.oom_score_adj)
    if options.cgroup_slots:
        builder.add(ops.JoinCgroup(options.cgroup_slots), "/linux/cgroupsPath")
    if options.rdt_slots:
        builder.add(ops.JoinCgroup(options.rdt_slots), "/linux/intelRdt")


def _add_entry(builder: Builder, options: CompileOptions | ExecOptions) -> None:
    """Never in a stage, whose launcher has no process to show yet."""
    if options.cgroup_entry:
        builder.add(ops.Sync("cgroup"), "/linux/cgroupsPath")


def _add_keyring(builder: Builder, wanted: model.Process, options: CompileOptions | ExecOptions) -> None:
    if not options.no_new_keyring:
        builder.add(ops.SessionKeyring(options.keyring or f"_ses.{options.id}", wanted.selinux_label or ""))


def _inherit(document: model.Process, container: model.Process) -> model.Process:
    """An exec has the container's limits, labels, scheduling and capabilities where it does not name its own."""
    user = document.user
    if user.umask is None:
        user = user._replace(umask=container.user.umask)
    return document._replace(
        user=user,
        capabilities=document.capabilities if document.capabilities is not None else container.capabilities,
        rlimits=document.rlimits or container.rlimits,
        apparmor_profile=document.apparmor_profile or container.apparmor_profile,
        selinux_label=document.selinux_label or container.selinux_label,
        oom_score_adj=document.oom_score_adj if document.oom_score_adj is not None else container.oom_score_adj,
        scheduler=document.scheduler or container.scheduler,
        io_priority=document.io_priority or container.io_priority,
        exec_cpu_affinity=document.exec_cpu_affinity or container.exec_cpu_affinity,
    )
