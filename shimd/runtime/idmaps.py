"""Mounts that show other owners than the file system has (mount_setattr(2), MOUNT_ATTR_IDMAP).

The maps are those of a user namespace, of which only the descriptor matters: a process is made in a new one, its maps
are written, and it ends. Mapping takes rights over the whole file system, so it is done here, on a tree that is not
attached anywhere yet, even where init has opened it.
"""

from __future__ import annotations

import errno
import os

from shimd.errors import RuntimeFailure
from shimd.init.handshake import Message, id_map_error
from shimd.linux.mount import AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_IDMAP, mount_setattr
from shimd.linux.process import CLONE_NEWUSER
from shimd.plan import ops
from shimd.runtime.launch import Launcher
from shimd.runtime.mapped import Maps
from shimd.runtime.namespaces import open_namespace
from shimd.runtime.process import write_id_maps
from shimd.typed import Iterable


class IdMaps:
    """User namespaces by slot, closed with the object. ``name`` is that of the container's launch."""

    def __init__(self, launcher: Launcher, name: str) -> None:
        self._launcher = launcher
        self._name = name
        self._namespaces: dict[str, int] = {}

    def __enter__(self) -> IdMaps:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])

    def open(self, sources: Iterable[ops.IdMapSource]) -> None:
        """Raises InvalidArgument for a path that is not a user namespace, RuntimeFailure."""
        for source in sources:
            if source.path:
                fd = open_namespace(ops.NamespaceFile(source.slot, source.path, CLONE_NEWUSER))
            else:
                fd = self._make(source)
            self._namespaces[source.slot] = fd

    def map_tree(self, tree: int, maps: Maps) -> None:
        """A detached tree, by maps of no slot. Raises RuntimeFailure."""
        fd = self._make(ops.IdMapSource("rootfs", maps.uid, maps.gid, ""))
        try:
            mount_setattr(tree, "", AT_EMPTY_PATH, set=MOUNT_ATTR_IDMAP, userns_fd=fd)
        except OSError as error:
            raise RuntimeFailure(f"map the ids of the rootfs: {id_map_error(error.errno or 0)}") from error
        finally:
            os.close(fd)

    def _make(self, source: ops.IdMapSource) -> int:
        try:
            # No id has a colon, so this is the name of no other process.
            with self._launcher.user_namespace(f"{self._name}:{source.slot}") as held:
                write_id_maps(held, source.uid_map, source.gid_map)
                return os.open(f"/proc/{held.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except RuntimeFailure as error:
            raise RuntimeFailure(f"make a user namespace for id-mapped mounts: {error}") from error

    def apply(self, fd: int, tree: ops.TreeSource) -> None:
        """To a tree that the runtime has opened. Raises RuntimeFailure."""
        try:
            self._map(fd, tree.id_map, recursive=tree.map_all)
        except OSError as error:
            raise RuntimeFailure(
                f"map the ids of mount source {tree.path}: {id_map_error(error.errno or 0)}"
            ) from error

    def answer(self, message: Message) -> int:
        """What init asks for, as ``converse`` wants it."""
        try:
            self._map(message.fd, message.text, recursive=message.kind == "ridmap")
        except KeyError:
            return errno.EINVAL
        except OSError as error:
            return error.errno or errno.EINVAL
        return 0

    def _map(self, tree: int, slot: str, *, recursive: bool) -> None:
        flags = AT_EMPTY_PATH | AT_RECURSIVE if recursive else AT_EMPTY_PATH
        mount_setattr(tree, "", flags, set=MOUNT_ATTR_IDMAP, userns_fd=self._namespaces[slot])
