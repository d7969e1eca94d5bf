"""Executables that a container cannot write to through /proc/<pid>/exe (CVE-2019-5736).

A container can make the runtime run itself inside (entry point /proc/self/exe) and then open the link for writing from
another process. So the runtime runs from something that nobody can write: a detached overlay whose only layers are
lower ones (no copying; nothing can turn such a superblock writable, unlike a read-only bind mount), or else a copy in
a sealed memfd.
"""

from __future__ import annotations

import errno
import os
import sys

from shimd.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    OVERLAYFS_SUPER_MAGIC,
    fsconfig_create,
    fsconfig_string,
    fsmount,
    fsopen,
    mount_id,
    statfs_type,
)

_CHUNK = 1 << 20


def protected_executable(path: str) -> int:
    """A close-on-exec descriptor of a safe copy of the program, to execve through."""
    try:
        return read_only_clone(path)
    except OSError:  # no CAP_SYS_ADMIN, no overlayfs, or a layer that overlayfs does not take
        return sealed_copy(path)


def spawn_python(program: str, *arguments: str, keep: int, setsid: bool = False) -> tuple[int, str]:
    """Run Python code in a process that executes a safe copy of our interpreter, with ``arguments`` from sys.argv[1],
    and with nothing of ours but the standard error and the descriptor ``keep``. The pid, and how the copy is protected.
    """
    interpreter: str = getattr(sys, "_base_executable", sys.executable)
    executable = protected_executable(interpreter)
    # argv[0] is where Python looks for its library from.
    argv = [interpreter, "-I", "-S", "-X", "utf8", "-c", program, *arguments]
    # With another locale than C its files are read, which nothing here needs.
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    if "LD_LIBRARY_PATH" in os.environ:  # an interpreter outside of /usr may need it to start at all
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, keep, keep),  # clears close-on-exec
    ]
    try:
        protection = "overlayfs" if statfs_type(executable) == OVERLAYFS_SUPER_MAGIC else "memfd"
        pid = os.posix_spawn(f"/proc/self/fd/{executable}", argv, env, file_actions=actions, setsid=setsid)
    finally:
        os.close(executable)
    return pid, protection


def read_only_clone(path: str) -> int:
    """O_PATH would do for execve, but a reader keeps the mount alive the same way and can be checked."""
    real = os.path.realpath(path)
    directory, name = os.path.split(real)
    if any(character in directory for character in ":,\\"):
        raise OSError(errno.EINVAL, "overlayfs cannot name this directory", directory)
    context = fsopen("overlay")
    try:
        # Two lower layers and no upper one: an overlay that has nowhere to write to. The second adds no names that
        # matter.
        fsconfig_string(context, "lowerdir", f"{directory}:/sys")
        fsconfig_create(context)
        tree = fsmount(context, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=tree)
    finally:
        os.close(tree)


def sealed_copy(path: str) -> int:
    from shimd.linux.memfd import create, seal

    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = create(f"shimd:{os.path.basename(path)}", executable=True)
    except OSError:
        os.close(source)
        raise
    try:
        os.fchmod(target, 0o755)
        while os.sendfile(target, source, None, _CHUNK):
            pass
        seal(target)
        # Anew for reading: what somebody has open for writing cannot be executed (ETXTBSY), sealed or not.
        return os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(source)
        os.close(target)


def is_protected(path: str = "/proc/self/exe") -> bool:
    """Whether the program is a sealed memfd or on an overlay that no mount namespace of ours shows."""
    from shimd.linux.memfd import is_sealed
    from shimd.linux.proc import mountinfo

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if is_sealed(fd):
            return True
        if statfs_type(fd) != OVERLAYFS_SUPER_MAGIC or not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return False
        own = mount_id(fd)
        return all(entry.mount_id != own for entry in mountinfo())
    finally:
        os.close(fd)
