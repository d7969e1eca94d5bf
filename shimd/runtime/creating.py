"""``create``: from a bundle to an init that waits at the start gate, or to a running program.

The order is the point. The state directory is reserved before anything else exists, limits are in force before a
process is, the state is on disk before init is let go for the last time. Each thing made is put on a stack of what
undoes it; a failure unwinds that: init killed and reaped, cgroup, state directory, poststop hooks, rootfs.
"""

from __future__ import annotations

import os
from _socket import socket

from shimd.cgroups.manager import CgroupManager, manager
from shimd.contexts import closing
from shimd.errors import RuntimeFailure
from shimd.linux.selinux import keeps_keys_apart
from shimd.oci.model import ConsoleSize, Hook, Mount, Spec
from shimd.plan import wire
from shimd.plan.compile import compile_create
from shimd.plan.ops import Plan
from shimd.plan.options import CompileOptions
from shimd.plan.rootfs import hook_specs
from shimd.runtime import binding, rdt
from shimd.runtime.bundle import find_rootfs, read_config
from shimd.runtime.control import start_time
from shimd.runtime.dialogue import InitDied, Outcome, converse
from shimd.runtime.idmaps import IdMaps
from shimd.runtime.launch import Launched, LaunchRequest
from shimd.runtime.model import Container, CreateOptions, Environment, Phases, Stdio, launch_name, unique_name
from shimd.runtime.process import (
    cgroup_view,
    hook_state,
    send_pidfd,
    set_rlimits,
    was_oom_killed,
    write_maps,
)
from shimd.runtime.state import (
    CONFIG_FILE,
    EXIT_FILE,
    MAKING_FILE,
    NOTIFY_SOCKET,
    STATE_FILE,
    ContainerState,
    Making,
    StateDir,
    check_id,
    dumps,
    timestamp,
)
from shimd.runtime.undo import Undo
from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from shimd.runtime.netdevices import NetDevices

NOTIFY_PLACE = "/run/notify"  # in the container

_NAMESPACE_KEYS = {
    "pid": ("NEWPID", "pid"),
    "network": ("NEWNET", "net"),
    "mount": ("NEWNS", "mnt"),
    "ipc": ("NEWIPC", "ipc"),
    "uts": ("NEWUTS", "uts"),
    "user": ("NEWUSER", "user"),
    "cgroup": ("NEWCGROUP", "cgroup"),
    "time": ("NEWTIME", "time"),
}


def create(
    env: Environment,
    namespace: str,
    container_id: str,
    bundle: str,
    *,
    config: bytes | None,
    stdio: Stdio,
    options: CreateOptions,
) -> Container:
    """See Runtime.create."""
    check_id("container", container_id)
    if namespace:
        check_id("namespace", namespace)
    with Undo(f"create container {container_id}") as undo:
        creation = _Creation(env, namespace, container_id, os.path.realpath(bundle), stdio, options, undo)
        return creation.run(config)


class _Creation:
    """One create. Methods run in the order in which they stand."""

    def __init__(
        self,
        env: Environment,
        namespace: str,
        container_id: str,
        bundle: str,
        stdio: Stdio,
        options: CreateOptions,
        undo: Undo,
    ) -> None:
        self.env = env
        self.namespace = namespace
        self.id = container_id
        self.name = launch_name(namespace, container_id)
        self.unique_name = unique_name(namespace, container_id)
        self.bundle = bundle
        self.stdio = stdio
        self.options = options
        self.undo = undo
        self.phases = Phases()
        self.net_devices: NetDevices | None = None
        self.mounted: tuple[str, ...] = ()
        self.poststop: tuple[Hook, ...] = ()

    def run(self, data: bytes | None) -> Container:
        self.directory = self.reserve()
        if self.options.pod is not None:
            from shimd.runtime import pod

            pod.make(self.directory.path, self.options.pod)
        self.config = read_config(self.bundle, self.env.host, data)
        self.spec = self.with_options(self.config.spec)
        self.keyring = self.name_keyring()
        self.cgroup = self.find_cgroup()
        self.begin()
        with IdMaps(self.env.launcher, self.name) as self.id_maps, binding.Slots() as slots:
            self.mounted = self.mount()
            self.phases.mark("read")
            self.make_cgroup()
            self.rdt = self.make_rdt()
            self.phases.mark("cgroup")
            self.plan = self.compile(slots)
            self.phases.mark("compile")
            control = self.bind(slots)
            with closing(control):
                self.launched = self.launch(slots)
                slots.close()
                self.record()
                outcome = self.talk(control)
        return self.finish(outcome)

    # ---- before there is a process ---------------------------------------------------------------------------------

    def name_keyring(self) -> str:
        """Names belong to a user namespace, where root of any container can join a keyring whose name it knows, or make
        it before. So it is runc's name in a namespace that nobody else is in, or where SELinux keeps the others out,
        and one that cannot be guessed elsewhere.
        """
        if self.options.no_new_keyring:
            return ""
        user = self.spec.linux.namespace("user")
        label = self.spec.process.selinux_label
        is_alone = (user is not None and user.path is None) or (label and keeps_keys_apart(label))
        return f"_ses.{self.id if is_alone else os.urandom(16).hex()}"

    def reserve(self) -> StateDir:
        directory = StateDir.reserve(self.env.state_root, self.namespace, self.id)
        self.undo.push("unmount the rootfs", self.unmount)
        self.undo.push("run the poststop hooks", self.run_poststop)
        self.undo.push("close the state directory", directory.close)
        self.undo.push("remove the state directory", directory.remove)
        return directory

    def with_options(self, spec: Spec) -> Spec:
        """What the caller adds to the configuration, which itself is written down as it was given."""
        process = spec.process._replace(env=spec.process.env + self.options.env)
        if self.options.console_size is not None:
            process = process._replace(console_size=ConsoleSize(*self.options.console_size))
        if not self.options.notify:
            return spec._replace(process=process)
        source = self.directory.make_notify()
        process = process._replace(env=(*process.env, f"NOTIFY_SOCKET={NOTIFY_PLACE}/{NOTIFY_SOCKET}"))
        mount = Mount(NOTIFY_PLACE, "bind", source, ("bind", "nosuid", "noexec", "nodev", "ro"))
        return spec._replace(process=process, mounts=(*spec.mounts, mount))

    def mount(self) -> tuple[str, ...]:
        mounts = self.options.rootfs
        if not mounts:
            return ()
        from shimd.runtime.rootfs import mount_rootfs

        return mount_rootfs(self.bundle, mounts, self.id_maps.map_tree)

    def unmount(self) -> None:
        if self.mounted:
            from shimd.runtime.rootfs import unmount_rootfs

            unmount_rootfs(self.bundle, self.mounted)

    def find_cgroup(self) -> CgroupManager:
        path = self.spec.linux.cgroups_path or ""
        cgroup = manager(
            self.env.host,
            cgroups_path=path,
            container_id=self.unique_name,
            systemd=self.options.systemd_cgroup,
            annotations=self.spec.annotations,
        )
        self.undo.push("close the cgroup", cgroup.close)
        return cgroup

    def begin(self) -> None:
        mounts = tuple(mount.target.strip("/") for mount in self.options.rootfs)
        self.directory.begin(Making(self.bundle, self.cgroup.to_state(), mounts))

    def make_cgroup(self) -> None:
        self.cgroup.create(self.spec.linux.resources)
        self.undo.push("remove the cgroup", self.cgroup.destroy)
        self.directory.commit(MAKING_FILE)
        self.cgroup_entry = self.cgroup.entry()
        if self.cgroup_entry is None:
            self.delegate(self.cgroup)

    def make_rdt(self) -> rdt.Group:
        wanted = self.spec.linux.intel_rdt
        if wanted is None:
            return rdt.NO_GROUP
        root = rdt.find_root()
        rdt.check(wanted, root)
        group = rdt.make(wanted, root, self.unique_name)
        self.undo.push("remove the RDT group", lambda: rdt.remove(group))
        return group

    def delegate(self, cgroup: CgroupManager) -> None:
        owner = cgroup_owner(self.spec)
        if owner is not None:
            cgroup.delegate(owner)

    def compile(self, slots: binding.Slots) -> Plan:
        options = CompileOptions(
            id=self.id,
            bundle=self.bundle,
            rootfs=find_rootfs(self.bundle, self.spec),
            gate=self.options.gate,
            cgroup_slots=self.cgroup_slots(slots),
            cgroup_entry=self.cgroup_entry is not None,
            rdt_slots=slots.add_rdt(rdt.open_tasks(self.rdt)),
            cgroups=cgroup_view(self.cgroup),
            no_pivot=self.options.no_pivot,
            no_new_keyring=self.options.no_new_keyring,
            keyring=self.keyring,
            preserve_fds=len(self.options.preserve_fds),
            seccomp_cache=self.env.seccomp_cache,
        )
        return compile_create(self.spec, self.env.host, options)

    def cgroup_slots(self, slots: binding.Slots) -> tuple[str, ...]:
        """The process is born in the unified hierarchy and joins those of v1."""
        slots.add_cgroup_fd(self.cgroup.cgroup_fd())
        return slots.add_cgroups(self.cgroup.open_procs())

    def bind(self, slots: binding.Slots) -> socket:
        """Everything that the plan names by slot; returns the runtime's end of the control socket."""
        slots.add_process(self.stdio, self.options, terminal=self.spec.process.terminal)
        slots.add_namespaces(self.plan.namespaces)
        self.id_maps.open(self.plan.id_maps)
        slots.add_trees(self.plan.trees, self.id_maps)
        if self.options.gate:
            slots.add_start_gate(self.directory)
        return slots.add_control()

    # ---- with a process --------------------------------------------------------------------------------------------

    def launch(self, slots: binding.Slots) -> Launched:
        self.poststop = self.spec.hooks.poststop
        request = LaunchRequest(
            name=self.name,
            clone=self.plan.clone,
            stage=wire.dumps(self.plan.stage) if self.plan.stage else b"",
            steps=wire.dumps(self.plan.steps),
            fds=slots.bound(),
            hold=self.options.hold,
            exit_file=os.path.join(self.directory.path, EXIT_FILE),
            cgroup_fd=slots.cgroup_fd,
        )
        self.phases.mark("bind")
        launched = self.env.launcher.launch(request)
        self.undo.push("close the pidfd", lambda: os.close(launched.pidfd))
        self.undo.push("kill init", lambda: self.env.launcher.discard(self.name, launched))
        self.phases.mark("launch")
        return launched

    def record(self) -> None:
        """Write everything down while init is at work; at "ready" the state only needs its name."""
        self.state = self.make_state()
        self.directory.write(CONFIG_FILE, self.config.data)
        self.directory.prepare(STATE_FILE, dumps(self.state))
        self.phases.mark("record")

    def talk(self, control: socket) -> Outcome:
        try:
            outcome = converse(
                control,
                self.launched.pidfd,
                self.on_sync,
                gate=self.options.gate,
                map_ids=self.id_maps.answer,
                on_listener=self.on_listener,
                raw_newlines=self.options.raw_newlines,
            )
        except InitDied as error:
            if was_oom_killed(self.cgroup):
                raise RuntimeFailure("container init was OOM-killed (memory limit too low?)") from error
            raise
        self.phases.mark("created" if self.options.gate else "executed")
        if outcome.console >= 0:
            self.undo.push("close the console", lambda: os.close(outcome.console))
        return outcome

    def on_sync(self, point: str) -> None:
        self.phases.mark(f"until {point}")
        if point == "cgroup":
            assert self.cgroup_entry is not None
            self.cgroup_entry(self.launched.pid)
            self.delegate(self.cgroup)
        elif point == "maps":
            write_maps(self.launched, self.plan)
        elif point == "network":
            self.move_net_devices()
        elif point == "hooks":
            self.run_hooks("prestart", self.spec.hooks.prestart, "creating")
            self.run_hooks("createRuntime", self.spec.hooks.create_runtime, "creating")
        else:
            set_rlimits(self.launched.pid, self.plan.rlimits)
            send_pidfd(self.options.pidfd_socket, self.launched, b"standard")
            self.directory.commit(STATE_FILE)
        self.phases.mark(point)

    def move_net_devices(self) -> None:
        """Init waits, so its pid and its namespace are its own."""
        from shimd.runtime.netdevices import NetDevices

        namespace = os.open(f"/proc/{self.launched.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.net_devices = NetDevices(namespace)
        self.undo.push("give the network devices back", self.net_devices.give_back)
        self.net_devices.move(self.plan.net_devices)

    def on_listener(self, number: int, fd: int) -> None:
        from shimd.runtime import agent

        state = hook_state(self.id, "creating", self.launched.pid, self.bundle, self.spec.annotations)
        agent.hand_over(self.spec.linux.seccomp, self.launched, number, fd, state)

    def make_state(self) -> ContainerState:
        pid_namespace = self.spec.linux.namespace("pid")
        return ContainerState(
            id=self.id,
            namespace=self.namespace,
            bundle=self.bundle,
            rootfs=os.path.normpath(os.path.join(self.bundle, self.spec.root.path)),
            created=timestamp(),
            pid=self.launched.pid,
            start_time=start_time(self.launched.pid),
            owner=os.geteuid(),
            config_hash=self.config.digest,
            annotations=dict(self.spec.annotations),
            cgroup=self.cgroup.to_state(),
            cgroup_paths=self.cgroup.paths,
            namespace_paths=namespace_paths(self.spec, self.launched.pid),
            own_pid_namespace=pid_namespace is not None and pid_namespace.path is None,
            rootfs_mounts=self.mounted,
            terminal=self.spec.process.terminal,
            stdio=self.stdio.paths,
            changed_resources={},
            service=dict(self.options.service),
            keyring=self.keyring,
            intel_rdt_path=self.rdt.path,
            intel_rdt_mon_path=self.rdt.monitoring,
            intel_rdt_owned=self.rdt.owned,
        )

    # ---- the end, good or bad --------------------------------------------------------------------------------------

    def finish(self, outcome: Outcome) -> Container:
        if not self.options.gate:
            self.run_hooks("poststart", self.spec.hooks.poststart, "running")
        if self.net_devices is not None:
            self.net_devices.close()
        self.directory.unlink(MAKING_FILE)
        self.directory.finished()
        return Container(
            self.state,
            self.directory,
            self.cgroup,
            self.launched.pidfd,
            spec=self.spec,
            console_fd=outcome.console,
            timings=self.phases.timings,
            warnings=self.config.warnings + self.plan.warnings + outcome.warnings,
        )

    def run_hooks(self, kind: str, entries: tuple[Hook, ...], status: str) -> None:
        if entries:
            from shimd.runtime import hooks

            state = hook_state(self.id, status, self.launched.pid, self.bundle, self.spec.annotations)
            hooks.run_hooks(kind, hook_specs(entries), state, cwd=self.bundle)

    def run_poststop(self) -> None:
        """As after a delete; only once a process was made, so that a hook could have done something to take back."""
        if self.poststop:
            from shimd.runtime import hooks

            state = hook_state(self.id, "stopped", 0, self.bundle, self.spec.annotations)
            problems = hooks.run_hooks_through("poststop", hook_specs(self.poststop), state, cwd=self.bundle)
            if problems:
                raise RuntimeFailure("; ".join(problems))


def cgroup_owner(spec: Spec) -> int | None:
    """The host's id of the user who gets a container's cgroup: one with users of its own and a writable view of it."""
    linux = spec.linux
    user, cgroup = linux.namespace("user"), linux.namespace("cgroup")
    own = user is not None and user.path is None and cgroup is not None and cgroup.path is None
    if not own or not any(entry.type == "cgroup" and "ro" not in entry.options for entry in spec.mounts):
        return None
    wanted = spec.process.user.uid
    for entry in linux.uid_mappings:
        if entry.container_id <= wanted < entry.container_id + entry.size:
            return entry.host_id + wanted - entry.container_id
    return None


def namespace_paths(spec: Spec, pid: int) -> dict[str, str]:
    """By runc's names, for the namespaces that are not the runtime's."""
    kinds = (_NAMESPACE_KEYS[namespace.type] for namespace in spec.linux.namespaces)
    return {key: f"/proc/{pid}/ns/{file}" for key, file in kinds}
