"""The interpreter of a plan: which function carries out which operation, and the loop."""

from __future__ import annotations

from shimd.init import cgroupfs, devices, hooks, mounts, process, program, rootfs, terminal
from shimd.init.context import Aborted, Context, StepFailed
from shimd.init.handshake import Failure
from shimd.plan import ops
from shimd.typed import Any, Callable


def _sync(ctx: Context, op: ops.Sync) -> None:
    ctx.sync(op.point)


HANDLERS: dict[type, Callable[[Context, Any], None]] = {
    ops.Sync: _sync,
    ops.OomScoreAdj: process.oom_score_adj,
    ops.JoinCgroup: process.join_cgroup,
    ops.Setns: process.set_namespaces,
    ops.Unshare: process.unshare,
    ops.TimeOffsets: process.time_offsets,
    ops.Dumpable: process.dumpable,
    ops.BecomeRoot: process.become_root,
    ops.SessionKeyring: process.session_keyring,
    ops.LoopbackUp: process.loopback_up,
    ops.PrepareRoot: rootfs.prepare_root,
    ops.Mount: mounts.mount,
    ops.Bind: mounts.bind,
    ops.Remount: mounts.remount,
    ops.MountCgroup1: cgroupfs.mount_cgroup1,
    ops.MountCgroup2: cgroupfs.mount_cgroup2,
    ops.MakeDevice: devices.make_device,
    ops.Symlink: devices.make_symlink,
    ops.RunHooks: hooks.run_hooks,
    ops.PivotRoot: rootfs.pivot,
    ops.MakeDirectory: rootfs.make_directory,
    ops.SetPropagation: rootfs.propagate,
    ops.Terminal: terminal.open_terminal,
    ops.Stdio: terminal.set_up_stdio,
    ops.FinalizeReadonly: rootfs.finalize_readonly,
    ops.Umask: process.umask,
    ops.Hostname: process.hostname,
    ops.Domainname: process.domainname,
    ops.AppArmor: process.apparmor,
    ops.Sysctl: process.sysctl,
    ops.ReadonlyPath: rootfs.readonly_path,
    ops.MaskPaths: rootfs.mask_paths,
    ops.NoNewPrivileges: process.no_new_privileges,
    ops.Scheduler: process.scheduler,
    ops.IoPriority: process.io_priority,
    ops.Personality: process.set_personality,
    ops.MemoryPolicy: process.memory_policy,
    ops.CpuAffinity: process.cpu_affinity,
    ops.SelinuxExec: process.selinux_exec,
    ops.Seccomp: process.load_seccomp,
    ops.BoundingSet: process.bounding_set,
    ops.User: process.become_user,
    ops.Capabilities: process.capabilities,
    ops.Chdir: program.change_directory,
    ops.HomeEnv: program.find_home,
    ops.FindProgram: program.find_program,
    ops.WaitStart: program.wait_for_start,
    ops.CloseFds: program.close_descriptors,
    ops.ResetSignals: program.reset_signals,
    ops.Execute: program.execute_program,
}


def execute(ctx: Context, steps: tuple[ops.Step, ...]) -> Failure | None:
    """The failure of the first step that fails; None when all were carried out (a plan with Execute does not return
    then). Raises Aborted.
    """
    index, op, origin = -1, None, ""
    try:
        for index, (op, origin) in enumerate(steps):  # noqa: B007  (named by the failure)
            HANDLERS[type(op)](ctx, op)
    except Aborted:
        raise
    except StepFailed as e:
        return Failure(index, type(op).__name__, origin, e.attempt, e.errno, e.text)
    except OSError as e:
        attempt = op.describe() if op is not None else ""
        where = f" ({e.filename})" if isinstance(e.filename, str) and e.filename not in attempt else ""
        return Failure(index, type(op).__name__, origin, attempt + where, e.errno or 0, e.strerror or str(e))
    except BaseException as e:  # noqa: BLE001  (a bug, or no memory: reported as data, there is nobody to catch it)
        attempt = op.describe() if op is not None else ""
        return Failure(index, type(op).__name__, origin, attempt, 0, f"{type(e).__name__}: {e}")
    return None
