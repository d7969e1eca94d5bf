"""What the runtime does for a process from outside while it is being made, the same for create and exec."""

from __future__ import annotations

import os
from _socket import socket

from shimd.cgroups.manager import CgroupManager
from shimd.errors import RuntimeFailure, ShimdError
from shimd.init.request import Launched
from shimd.linux import fdpass
from shimd.linux.process import prlimit
from shimd.oci import statejson
from shimd.plan.ops import IdMap, Plan, Rlimit
from shimd.plan.options import CgroupHierarchy, CgroupView
from shimd.plan.process import RLIMITS
from shimd.runtime.launch import is_dead
from shimd.typed import Iterable, Mapping, Sequence


def write_maps(launched: Launched, plan: Plan) -> None:
    """uid_map, gid_map and setgroups of a new user namespace; each takes one write(2) in all its life.

    An ordinary user may only map its own id; newuidmap(1) and newgidmap(1), which are privileged, write what
    /etc/subuid and /etc/subgid allow beside.
    """
    if plan.deny_setgroups:
        _write_proc(launched, "setgroups", b"deny")
    write_id_maps(launched, plan.uid_map, plan.gid_map)


def write_id_maps(launched: Launched, uid_map: Iterable[IdMap], gid_map: Iterable[IdMap]) -> None:
    _write_map(launched, "gid_map", gid_map)
    _write_map(launched, "uid_map", uid_map)


def _write_map(launched: Launched, name: str, maps: Iterable[IdMap]) -> None:
    lines = "".join(f"{entry.container} {entry.host} {entry.size}\n" for entry in maps)
    try:
        _write_proc(launched, name, lines.encode())
    except RuntimeFailure as error:
        if not isinstance(error.__cause__, PermissionError) or os.geteuid() == 0:
            raise
        _run_map_tool(f"new{name.replace('_', '')}", launched.pid, lines, error)


def _run_map_tool(tool: str, pid: int, lines: str, refusal: RuntimeFailure) -> None:
    from subprocess import run  # of no use to root

    try:
        done = run([tool, str(pid), *lines.split()], capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        raise RuntimeFailure(f"{refusal}; {tool} is not installed, which could", hint="install uidmap") from refusal
    if done.returncode != 0:
        ranges = ", ".join(lines.splitlines())
        raise RuntimeFailure(f"{tool} {ranges}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _write_proc(launched: Launched, name: str, data: bytes) -> None:
    path = f"/proc/{launched.pid}/{name}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # Opened while the process lives, the file is its file, whatever becomes of the pid.
            if not is_dead(launched.pidfd):
                os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"write {data.decode().strip()!r} to {path}: {error.strerror}") from error


def send_pidfd(target: int, launched: Launched, kind: bytes) -> None:
    """To a connected unix socket; -1 is none. ``kind`` is runc's word for the process: "standard" or "setns"."""
    if target < 0:
        return
    channel = socket(fileno=target)
    try:
        fdpass.send(channel, kind, [launched.pidfd])
    except OSError as error:
        raise RuntimeFailure(f"send a pidfd to the pidfd socket: {error.strerror}") from error
    finally:
        channel.detach()


def set_rlimits(pid: int, rlimits: Sequence[Rlimit]) -> None:
    """From outside, since a low RLIMIT_AS or RLIMIT_NOFILE would starve init itself."""
    for limit in rlimits:
        try:
            prlimit(pid, limit.resource, limit.soft, limit.hard)
        except OSError as error:
            name = next((name for name, number in RLIMITS.items() if number == limit.resource), limit.resource)
            what = f"{name} {limit.soft}:{limit.hard}"
            raise RuntimeFailure(f"setting rlimits for ready process: {what}: {error.strerror}") from error


def was_oom_killed(cgroup: CgroupManager) -> bool:
    """Whether a process of the cgroup has ever been killed for want of memory; False when nobody can tell."""
    try:
        memory = cgroup.stats().memory
    except (OSError, ShimdError):
        return False
    return bool(memory.oom_kill or memory.events.get("oom_kill"))


def cgroup_view(cgroup: CgroupManager) -> CgroupView:
    """What the plan needs for mounts of type cgroup."""
    view = cgroup.view()
    return CgroupView(tuple(CgroupHierarchy(*entry) for entry in view.hierarchies), view.links, view.unified)


def hook_state(container_id: str, status: str, pid: int, bundle: str, annotations: Mapping[str, str]) -> bytes:
    """The document on the standard input of a hook."""
    document = statejson.hook_state(
        container_id=container_id, status=status, pid=pid, bundle=bundle, annotations=annotations
    )
    return statejson.dumps(document).encode()
