"""The rootfs before and after it is entered: propagation, hooks at their places, what is hidden or read-only inside."""

from __future__ import annotations

from shimd.linux.mount import MS_PRIVATE, MS_REC, MS_SLAVE, MS_UNBINDABLE
from shimd.linux.process import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER
from shimd.oci import model, statejson
from shimd.oci.values import rooted, sysctl_path
from shimd.plan import ops
from shimd.plan.builder import Builder
from shimd.plan.devices import add_devices
from shimd.plan.mount_options import PROPAGATION
from shimd.plan.mounts import MountCompiler, has_own_dev
from shimd.plan.namespaces import Layout
from shimd.plan.options import CompileOptions
from shimd.plan.process import DEFAULT_UMASK


def add_rootfs(builder: Builder, spec: model.Spec, options: CompileOptions, namespaces: Layout) -> None:
    """From the untouched mount namespace to the moment before the rootfs becomes /."""
    host = builder.host
    user_namespace = bool(namespaces.all & CLONE_NEWUSER)
    if spec.linux.net_devices:
        builder.add(ops.Sync("network"), "/linux/netDevices")
    if namespaces.new & CLONE_NEWNET:
        builder.add(ops.LoopbackUp())
    builder.add(ops.Umask(DEFAULT_UMASK))  # before the first directory is made
    # Without privileges the runtime cannot open trees; but then the files are init's own to reach.
    pass_trees = user_namespace and host.euid == 0
    if pass_trees:
        builder.trees.append(ops.TreeSource("rootfs", options.rootfs, recursive=True))
    slot = "rootfs" if pass_trees else ""
    builder.add(ops.PrepareRoot(options.rootfs, _propagation(spec, namespaces), slot), "/root/path")
    compiler = MountCompiler(builder, spec, options, pass_trees=pass_trees)
    for index, mount in enumerate(spec.mounts):
        compiler.add(index, mount)
    if not has_own_dev(spec, options.rootfs):
        add_devices(builder, spec.linux.devices, bind=user_namespace or host.in_userns)


def add_entry(builder: Builder, spec: model.Spec, options: CompileOptions, namespaces: Layout) -> None:
    """The hooks that see the rootfs from outside, then pivot_root."""
    if spec.hooks.prestart or spec.hooks.create_runtime:
        builder.add(ops.Sync("hooks"), "/hooks")
    add_hooks(builder, spec, options, "createContainer", spec.hooks.create_container, "creating")
    has_mounts = bool(namespaces.all & CLONE_NEWNS)
    builder.add(ops.PivotRoot("chroot" if not has_mounts else "move" if options.no_pivot else "pivot"), "/root/path")
    propagation = PROPAGATION.get(spec.linux.rootfs_propagation or "", 0)
    if propagation and not propagation & (MS_PRIVATE | MS_SLAVE):
        # Only now is the flag no concern of the host: before, the rootfs was a mount among the host's.
        builder.add(ops.SetPropagation(propagation), "/linux/rootfsPropagation")
    if spec.process.cwd != "/":
        builder.add(ops.MakeDirectory(spec.process.cwd, 0o755), "/process/cwd")


def add_finish(builder: Builder, spec: model.Spec) -> None:
    """What makes the rootfs the container's: read-only, named, labelled, with the host's knobs hidden."""
    linux = spec.linux
    for operation, origin in builder.deferred:
        builder.add(operation, origin)
    if spec.root.readonly:
        builder.add(ops.FinalizeReadonly("/"), "/root/readonly")
    if spec.hostname:
        builder.add(ops.Hostname(spec.hostname), "/hostname")
    if spec.domainname:
        builder.add(ops.Domainname(spec.domainname), "/domainname")
    if spec.process.apparmor_profile:
        builder.add(ops.AppArmor(spec.process.apparmor_profile), "/process/apparmorProfile")
    for key, value in linux.sysctl.items():
        builder.add(ops.Sysctl(sysctl_path(key), value), f"/linux/sysctl/{key.replace('~', '~0').replace('/', '~1')}")
    for index, path in enumerate(linux.readonly_paths):
        builder.add(ops.ReadonlyPath(rooted(path)), f"/linux/readonlyPaths/{index}")
    if linux.masked_paths:
        paths = tuple(dict.fromkeys(map(rooted, linux.masked_paths)))
        builder.add(ops.MaskPaths(paths, linux.mount_label or ""), "/linux/maskedPaths")


def add_hooks(
    builder: Builder,
    spec: model.Spec,
    options: CompileOptions,
    kind: str,
    hooks: tuple[model.Hook, ...],
    status: str,
) -> None:
    if hooks:
        state = statejson.hook_state(
            container_id=options.id, status=status, pid=1, bundle=options.bundle, annotations=spec.annotations
        )
        # Quotes inside of strings are escaped, so this is the field and nothing else.
        before, _, after = statejson.dumps(state).partition('"pid":1')
        builder.add(ops.RunHooks(kind, hook_specs(hooks), (before + '"pid":', after)), f"/hooks/{kind}")


def hook_specs(hooks: tuple[model.Hook, ...]) -> tuple[ops.HookSpec, ...]:
    return tuple([ops.HookSpec(hook.path, hook.args or (hook.path,), hook.env, hook.timeout or 0) for hook in hooks])


def _propagation(spec: model.Spec, namespaces: Layout) -> int:
    if not namespaces.all & CLONE_NEWNS:
        return 0
    wanted = PROPAGATION.get(spec.linux.rootfs_propagation or "", 0)
    # An unbindable rootfs could not be bound on itself: it becomes that when it is entered.
    return MS_SLAVE | MS_REC if not wanted or wanted & MS_UNBINDABLE else wanted
