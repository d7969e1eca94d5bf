"""The mounts of config.json, in its order.

A mount that asks for ``ro`` but needs to be written first (a tmpfs, whose later mounts need mount points, and /dev,
whose nodes come after all mounts) is mounted writable and set read-only at the end. In a user namespace init cannot
reach sources below directories of the host's root: the runtime opens those trees and passes them as slots.
"""

from __future__ import annotations

import posixpath

from shimd.linux.mount import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)
from shimd.oci import model
from shimd.oci.mappings import is_bind, is_id_mapped
from shimd.oci.values import rooted
from shimd.plan import ops
from shimd.plan.builder import Builder
from shimd.plan.mount_options import (
    MountOptions,
    cleared_attributes,
    fresh_attributes,
    parse_options,
    remount_attr,
    superblock_options,
)
from shimd.plan.namespaces import id_maps
from shimd.plan.options import CompileOptions

# The kernel knows no context= for these; mqueue takes the label as an attribute of its root instead.
_UNLABELLED = frozenset(("proc", "sysfs", "cgroup", "cgroup2"))


class MountCompiler:
    """``pass_trees``: sources of binds are opened by the runtime."""

    def __init__(self, builder: Builder, spec: model.Spec, options: CompileOptions, *, pass_trees: bool) -> None:
        self._builder = builder
        self._options = options
        self._linux = spec.linux
        self._label = spec.linux.mount_label or ""
        self._cgroup_namespace = spec.linux.namespace("cgroup") is not None
        self._pass_trees = pass_trees

    def add(self, index: int, mount: model.Mount) -> None:
        origin = f"/mounts/{index}"
        target = container_path(mount.destination, self._options.rootfs)
        if target == "/":
            self._builder.refuse(f"{origin}/destination", f"{mount.destination} is the top of the rootfs")
        options = parse_options(mount.options)
        if is_bind(mount):
            self._add_bind(index, origin, target, mount, options)
        elif options.flags & MS_REMOUNT:
            self._add_remount(origin, target, options)
        elif mount.type == "cgroup" or (mount.type == "cgroup2" and self._builder.host.cgroup_mode == "v2"):
            self._add_cgroup(origin, target, options)
        else:
            self._add_file_system(origin, target, mount.type or "", mount.source or "", options)

    def _add_bind(self, index: int, origin: str, target: str, mount: model.Mount, options: MountOptions) -> None:
        if options.first_data >= 0:
            # The kernel ignores them without a word, and a typing error in "nosuid" must not go unnoticed.
            pointer = f"{origin}/options/{options.first_data}"
            self._builder.refuse(pointer, f'unknown option "{mount.options[options.first_data]}" of a bind mount')
            return
        if options.copy_up:
            self._builder.refuse(f"{origin}/options", "tmpcopyup is for a tmpfs, not for a bind mount")
            return
        source = posixpath.normpath(posixpath.join(self._options.bundle, mount.source or ""))
        inside = _inside(source, self._options.rootfs)
        recursive = bool(options.flags & MS_REC)
        id_map = self._id_map(mount) if is_id_mapped(mount) else ""
        slot = ""
        if self._pass_trees and not inside:
            slot = f"mount.{index}"
            self._builder.trees.append(ops.TreeSource(slot, source, recursive, id_map, options.map_all))
        self._builder.add(
            ops.Bind(
                target,
                inside or source,
                slot,
                recursive,
                bool(options.flags & ~(MS_BIND | MS_REC | MS_REMOUNT) or options.cleared),
                remount_attr(options.flags),
                cleared_attributes(options.cleared),
                options.more,
                bool(inside),
                id_map,
                options.map_all,
            ),
            origin,
        )

    def _id_map(self, mount: model.Mount) -> str:
        """The mount's own maps, else those of the container."""
        mapped: model.Mount | model.Linux = mount if mount.uid_mappings else self._linux
        namespace = self._linux.namespace("user")
        path = namespace.path if namespace is not None and mapped is self._linux else None
        if path is not None:
            return self._builder.id_map((), (), path)
        return self._builder.id_map(id_maps(mapped.uid_mappings), id_maps(mapped.gid_mappings), "")

    def _add_remount(self, origin: str, target: str, options: MountOptions) -> None:
        superblock = superblock_options(options.flags)
        if not options.flags & MS_RDONLY:
            superblock = ("rw", *superblock)
        attr = remount_attr(options.flags)
        self._builder.add(ops.Remount(target, (*superblock, *options.data), attr, options.more), origin)

    def _add_file_system(self, origin: str, target: str, fstype: str, source: str, options: MountOptions) -> None:
        if options.copy_up and fstype != "tmpfs":
            self._builder.refuse(f"{origin}/options", f"tmpcopyup is for a tmpfs, not for {fstype}")
            return
        flags = options.flags
        if flags & MS_RDONLY and (fstype == "tmpfs" or target == "/dev"):
            flags &= ~MS_RDONLY
            self._builder.deferred.append((ops.FinalizeReadonly(target), origin))
        self._builder.add(
            ops.Mount(
                target,
                fstype,
                source,
                superblock_options(flags) + options.data,
                ops.MountAttr(fresh_attributes(flags), 0, 0, recursive=False),
                options.more,
                options.copy_up,
                "" if fstype in _UNLABELLED else self._label,
            ),
            origin,
        )

    def _add_cgroup(self, origin: str, target: str, options: MountOptions) -> None:
        host, view = self._builder.host, self._options.cgroups
        if options.first_data >= 0:
            # Superblock options of a hierarchy are shared with the whole host.
            self._builder.warn(
                f"{origin}/options/{options.first_data}", "options of the cgroup file system are ignored"
            )
        if host.cgroup_mode == "none":
            self._builder.refuse(origin, "no cgroup file system is mounted on this host")
        elif host.cgroup_mode == "v2":
            fallback = view.unified if self._cgroup_namespace else host.unified_mount
            attr = ops.MountAttr(fresh_attributes(options.flags), 0, 0, recursive=False)
            self._builder.add(ops.MountCgroup2(target, fallback, attr, options.more), origin)
        else:
            self._builder.add(self._cgroup1(target, options), origin)

    def _cgroup1(self, target: str, options: MountOptions) -> ops.MountCgroup1:
        view = self._options.cgroups
        mounted = self._cgroup_namespace
        hierarchies = [(item.name, "cgroup", item.options, "" if mounted else item.source) for item in view.hierarchies]
        if view.unified:
            name = posixpath.basename(self._builder.host.unified_mount) or "unified"
            hierarchies.append((name, "cgroup2", "", "" if mounted else view.unified))
        attributes = fresh_attributes(options.flags) & ~MOUNT_ATTR__ATIME
        attributes |= MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        return ops.MountCgroup1(
            target,
            tuple(hierarchies),
            tuple([(name, link) for name, link in view.links]),
            ops.MountAttr(attributes, 0, 0, recursive=False),
            options.more,
            bool(attributes & MOUNT_ATTR_RDONLY),
        )


def container_path(path: str, rootfs: str) -> str:
    """A destination, which may also be given by the host's path."""
    return _inside(rooted(path), rootfs) or rooted(path)


def _inside(path: str, rootfs: str) -> str:
    """A host's path as the container has it; "" when it is not in the rootfs."""
    prefix = rootfs.rstrip("/")
    if not prefix or not (path + "/").startswith(prefix + "/"):
        return ""
    return path[len(prefix) :] or "/"


def has_own_dev(spec: model.Spec, rootfs: str) -> bool:
    """Whether /dev is a bind mount: then it is taken as it is, without nodes and links of ours."""
    return any(is_bind(mount) and container_path(mount.destination, rootfs) == "/dev" for mount in spec.mounts)
