"""Descriptors for a launch: what the slots of a plan are bound to."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM, socket, socketpair

from shimd.errors import InvalidArgument, RuntimeFailure
from shimd.linux import mount
from shimd.plan.ops import NamespaceFile, TreeSource
from shimd.runtime.idmaps import IdMaps
from shimd.runtime.model import CreateOptions, ExecOptions, Stdio
from shimd.runtime.namespaces import open_namespace
from shimd.runtime.state import START_SOCKET, StateDir
from shimd.typed import Iterable


class Slots:
    """Descriptors by slot name for one launch. Those that are *owned* are closed with the object, the others are only
    lent to it.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[str, int]] = []
        self._owned: list[int] = []
        self.cgroup_fd = -1

    def lend(self, slot: str, fd: int) -> None:
        self._bound.append((slot, fd))

    def own(self, slot: str, fd: int) -> None:
        self._owned.append(fd)
        self._bound.append((slot, fd))

    def bound(self) -> tuple[tuple[str, int], ...]:
        return tuple(self._bound)

    def close(self) -> None:
        while self._owned:
            os.close(self._owned.pop())

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- what a process needs --------------------------------------------------------------------------------------

    def add_process(self, stdio: Stdio, options: CreateOptions | ExecOptions, *, terminal: bool) -> None:
        """Raises InvalidArgument for a preserved descriptor that is not open.

        A process with a terminal gets no stdio: as long as it waits it would hold the caller's pipes open.
        """
        if options.console_socket >= 0:
            self.lend("console", options.console_socket)
        for slot, fd in zip(("stdin", "stdout", "stderr"), stdio[:3], strict=True):
            if fd >= 0 and not terminal:
                self.lend(slot, fd)

        for index, fd in enumerate(options.preserve_fds):
            try:
                os.fstat(fd)
            except OSError as error:
                raise InvalidArgument(f"unable to stat preserved-fd {fd}: {error.strerror}") from error
            self.lend(f"preserve.{index}", fd)

    def add_cgroup_fd(self, fd: int) -> None:
        """A cgroup v2 directory that the process is born in; -1 is none."""
        if fd >= 0:
            self._owned.append(fd)
            self.cgroup_fd = fd

    def add_cgroups(self, procs: Iterable[int]) -> tuple[str, ...]:
        """Owns ``procs``; returns the slots for JoinCgroup."""
        return self._own_each("cgroup", procs)

    def add_rdt(self, tasks: Iterable[int]) -> tuple[str, ...]:
        """The same for files of resctrl."""
        return self._own_each("rdt", tasks)

    def _own_each(self, kind: str, fds: Iterable[int]) -> tuple[str, ...]:
        names: list[str] = []
        for index, fd in enumerate(fds):
            names.append(f"{kind}.{index}")
            self.own(names[-1], fd)
        return tuple(names)

    def add_namespaces(self, files: Iterable[NamespaceFile]) -> None:
        """Raises InvalidArgument for a path that is not a namespace of the wanted type."""
        for file in files:
            self.own(file.slot, open_namespace(file))

    def add_trees(self, trees: Iterable[TreeSource], id_maps: IdMaps) -> None:
        """Slaves, as the kernel makes all mounts that a user namespace gets a copy of: those of the host come in, none
        go out. And pivot_root(2) refuses a shared root.
        """
        for tree in trees:
            flags = mount.OPEN_TREE_CLONE | (mount.AT_RECURSIVE if tree.recursive else 0)
            try:
                fd = mount.open_tree(mount.AT_FDCWD, tree.path, flags)
                self.own(tree.slot, fd)
                mount.mount_setattr(fd, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, propagation=mount.MS_SLAVE)
            except OSError as error:
                raise RuntimeFailure(f"open mount source {tree.path}: {error.strerror}") from error
            if tree.id_map:
                id_maps.apply(fd, tree)

    def add_control(self) -> socket:
        """The runtime's end of a new control socket; the caller closes it."""
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        self.own("control", theirs.detach())
        return ours

    def add_start_gate(self, directory: StateDir) -> None:
        """Make start.sock, whose existence says that the container is created and not started."""
        gate = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self.own("start", gate.fileno())
        os.fchmod(gate.fileno(), 0o600)  # bind(2) gives the file the mode of the socket
        gate.bind(f"/proc/self/fd/{directory.fd}/{START_SOCKET}")
        gate.listen(1)
        gate.detach()
