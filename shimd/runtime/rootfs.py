"""The file systems of a create request: overlay, bind, ext4 by loop and what else the kernel knows, mounted on
<bundle>/rootfs.

The request has containerd's form, where options are those of mount(8) mixed with data of the file system. What
decides details:

- fsconfig(2) takes no string over 255 bytes, and an overlay of many layers has far longer ones: its layers are added
  one by one (``lowerdir+``, Linux 6.7), and where the kernel does not know that, mount(2) with its one page of data
  is used.
- A layer whose own path is too long is named through a descriptor (/proc/self/fd/N): only its text is bounded, not
  the path.
- The last unmount waits for the disk; when a process still has the rootfs open it is detached, and goes away with
  that process.
- A target inside of the rootfs is resolved in it, since its links are the image's.
"""

from __future__ import annotations

import errno
import os

from shimd.contexts import ExitStack, contextmanager
from shimd.errors import InvalidArgument, RuntimeFailure, Unimplemented
from shimd.linux import loop
from shimd.linux import mount as m
from shimd.linux.path import open_in_root
from shimd.records import Record
from shimd.runtime import mapped
from shimd.typed import Callable, Iterator, Sequence

ROOTFS = "rootfs"

_MAX_STRING = 255
_MAX_DATA = 4095
_OVERLAY_PATHS = ("lowerdir", "upperdir", "workdir")


class RootfsMount(Record):
    """One mount of the request; ``target`` is a directory inside of the rootfs or ""."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


class MountOptions(Record):
    """``attr_set`` and ``attr_clear`` are MOUNT_ATTR_*; ``superblock`` and ``data`` go to the file system, as words
    or key=value.
    """

    attr_set: int
    attr_clear: int
    propagation: int
    propagation_recursive: bool
    bind: bool
    recursive: bool
    loop: bool
    superblock: tuple[str, ...]
    data: tuple[str, ...]


_ATIME = m.MOUNT_ATTR__ATIME
_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (m.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, m.MOUNT_ATTR_RDONLY),
    "nosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, m.MOUNT_ATTR_NOSUID),
    "nodev": (m.MOUNT_ATTR_NODEV, 0),
    "dev": (0, m.MOUNT_ATTR_NODEV),
    "noexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, m.MOUNT_ATTR_NOEXEC),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (m.MOUNT_ATTR_NOATIME, _ATIME),
    "strictatime": (m.MOUNT_ATTR_STRICTATIME, _ATIME),
    "relatime": (m.MOUNT_ATTR_RELATIME, _ATIME),
    "atime": (m.MOUNT_ATTR_RELATIME, _ATIME),
    "norelatime": (m.MOUNT_ATTR_RELATIME, _ATIME),
    "nostrictatime": (m.MOUNT_ATTR_RELATIME, _ATIME),
}
_PROPAGATION = {
    "private": m.MS_PRIVATE,
    "shared": m.MS_SHARED,
    "slave": m.MS_SLAVE,
    "unbindable": m.MS_UNBINDABLE,
}
_SUPERBLOCK = {"ro": "ro", "sync": "sync", "dirsync": "dirsync", "mand": "mand", "lazytime": "lazytime"}
_SUPERBLOCK_OFF = {"rw": "ro", "async": "sync", "nomand": "mand", "nolazytime": "lazytime"}
_IGNORED = frozenset(("defaults", "silent", "loud"))


def parse_options(options: Sequence[str]) -> MountOptions:
    """Split the options of a request by who takes them; of contradicting ones the last wins. Those that map ids are
    left to ``mapped.read``. Raises InvalidArgument, Unimplemented.
    """
    attr_set = attr_clear = propagation = 0
    flags = {"bind": False, "rbind": False, "loop": False, "rpropagation": False}
    superblock: dict[str, None] = {}
    data: list[str] = []
    for option in options:
        word = option.strip()
        if "\0" in word:
            raise InvalidArgument(f"rootfs mount option {word!r}: embedded null byte")
        if word == "remount":
            raise Unimplemented(f"rootfs mount option {word!r} is not supported")
        if word.startswith(mapped.OPTIONS):
            continue
        if word in _ATTRIBUTES:
            added, removed = _ATTRIBUTES[word]
            attr_set, attr_clear = attr_set & ~removed | added, attr_clear & ~added | removed
        elif word.removeprefix("r") in _PROPAGATION and word not in ("r", ""):
            propagation, flags["rpropagation"] = _PROPAGATION[word.removeprefix("r")], word.startswith("r")
        elif word in flags:
            flags[word] = True
        elif word and word not in _IGNORED and word not in _SUPERBLOCK and word not in _SUPERBLOCK_OFF:
            data.extend(_split_data(word))
        if word in _SUPERBLOCK:
            superblock[_SUPERBLOCK[word]] = None
        superblock.pop(_SUPERBLOCK_OFF.get(word, ""), None)
    bind = flags["bind"] or flags["rbind"]
    return MountOptions(
        attr_set, attr_clear, propagation, flags["rpropagation"], bind, flags["rbind"], flags["loop"],
        tuple(superblock), tuple(data) )  # fmt: skip


def _split_data(option: str) -> list[str]:
    """mount(2) takes "a=1,b=2" as two options; in the paths of an overlay a comma is part of the name."""
    return [option] if option.startswith(_OVERLAY_PATHS) else option.split(",")


def mount_rootfs(
    bundle: str, mounts: Sequence[RootfsMount], map_tree: mapped.MapTree = mapped.cannot_map
) -> tuple[str, ...]:
    """Mount in order on <bundle>/rootfs, which is made when missing; returns what ``unmount_rootfs`` needs.

    Raises RuntimeFailure (or what parse_options raises) with everything unmounted again.
    """
    parsed = [(parse_options(mount.options), mapped.read(mount.options)) for mount in mounts]
    root = os.path.join(bundle, ROOTFS)
    done: list[str] = []
    try:
        if mounts:
            _make_directory(root)
        for mount, (options, maps) in zip(mounts, parsed, strict=True):
            _mount_mapped(mount, options, root, maps, map_tree)
            done.append(mount.target.strip("/"))
    except BaseException:
        unmount_rootfs(bundle, done)
        raise
    return tuple(done)


def unmount_rootfs(bundle: str, targets: Sequence[str]) -> None:
    """Undo ``mount_rootfs``, last mount first; what is already unmounted is fine. Raises RuntimeFailure."""
    root = os.path.join(bundle, ROOTFS)
    for target in reversed(targets):
        try:
            if target:
                _unmount_below(root, target)
            else:
                _unmount(root)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise RuntimeFailure(f"unmount {os.path.join(root, target)}: {error.strerror}") from error


def _unmount(path: str) -> None:
    try:
        m.umount2(path, m.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        m.umount2(path, m.UMOUNT_NOFOLLOW | m.MNT_DETACH)


def _unmount_below(root: str, target: str) -> None:
    """Detached at once: the descriptor that makes the path safe also keeps the mount busy."""
    with _opened(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as root_fd:
        with _opened(open_in_root(root_fd, target, os.O_PATH)) as fd:
            m.umount2(f"/proc/self/fd/{fd}", m.MNT_DETACH)


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o711)
    except FileExistsError:
        pass
    except OSError as error:
        raise RuntimeFailure(f"make {path}: {error.strerror}") from error


def _mount_mapped(
    mount: RootfsMount, options: MountOptions, root: str, maps: mapped.Maps | None, map_tree: mapped.MapTree
) -> None:
    if maps is None:
        _mount_one(mount, options, root)
    elif mount.type != "overlay":
        _mount_one(mount, options, root, lambda tree: map_tree(tree, maps))
    else:
        index, value = _lowerdir(options)
        layers = split_layers(value)
        with mapped.mapped_layers(os.path.dirname(root), [path for _, path in layers], maps, map_tree) as paths:
            item = "lowerdir=" + join_layers([(key, path) for (key, _), path in zip(layers, paths, strict=True)])
            data = (*options.data[:index], item, *options.data[index + 1 :])
            _mount_one(mount, options._replace(data=data), root)


def _lowerdir(options: MountOptions) -> tuple[int, str]:
    """Where it is among the data, and its value."""
    for index, item in enumerate(options.data):
        if item.startswith("lowerdir="):
            return index, item.removeprefix("lowerdir=")
    raise InvalidArgument("rootfs mount: an overlay without lowerdir cannot be mapped")


def _mount_one(
    mount: RootfsMount, options: MountOptions, root: str, map_ids: Callable[[int], None] | None = None
) -> None:
    where = os.path.join(root, mount.target.strip("/")) if mount.target.strip("/") else root
    try:
        with ExitStack() as stack:
            target = stack.enter_context(
                _opened(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            )
            if mount.target.strip("/"):
                target = stack.enter_context(_opened(open_in_root(target, mount.target, os.O_PATH)))
            tree = stack.enter_context(_opened(_make_tree(mount, options, stack)))
            if map_ids is not None:
                map_ids(tree)
            if options.propagation:
                flags = m.AT_EMPTY_PATH | (m.AT_RECURSIVE if options.propagation_recursive else 0)
                m.mount_setattr(tree, "", flags, propagation=options.propagation)
            m.move_mount(tree, "", target, "", m.MOVE_MOUNT_F_EMPTY_PATH | m.MOVE_MOUNT_T_EMPTY_PATH)
    except _TooLongForKernel:
        _mount_classic(mount, options, where)
    except OSError as error:
        subject = error.filename or mount.source
        raise RuntimeFailure(f"mount {mount.type or 'bind'} {subject} on {where}: {error.strerror}") from error


class _TooLongForKernel(Exception):
    """The kernel has no way to take these layers through fsconfig(2)."""


def _make_tree(mount: RootfsMount, options: MountOptions, stack: ExitStack) -> int:
    """A detached mount."""
    if options.bind or mount.type == "bind":
        return _bind_tree(mount, options)
    return _new_tree(mount, options, stack)


def _bind_tree(mount: RootfsMount, options: MountOptions) -> int:
    if options.data:
        raise InvalidArgument(f"rootfs mount option {options.data[0]!r} is not for a bind mount")
    recursive = m.AT_RECURSIVE if options.recursive else 0
    tree = m.open_tree(m.AT_FDCWD, mount.source, m.OPEN_TREE_CLONE | recursive)
    try:
        # Flags are only added: "rw" on a bind of a read-only mount leaves it read-only, as mount(2) does.
        clear = options.attr_clear & _ATIME
        if options.attr_set or clear:
            m.mount_setattr(tree, "", m.AT_EMPTY_PATH, set=options.attr_set, clear=clear)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _new_tree(mount: RootfsMount, options: MountOptions, stack: ExitStack) -> int:
    source = mount.source
    if options.loop:
        # The descriptor keeps the device from clearing itself before the file system holds it.
        source, device = loop.attach(mount.source, read_only="ro" in options.superblock)
        stack.callback(os.close, device)
    context = stack.enter_context(_opened(m.fsopen(mount.type)))
    try:
        if source:
            m.fsconfig_string(context, "source", _short(source, stack))
        for word in options.superblock:
            m.fsconfig_flag(context, word)
        for item in options.data:
            _configure(context, mount.type, item, stack)
        m.fsconfig_create(context)
        return m.fsmount(context, options.attr_set)
    except OSError as error:
        # The messages of the file system say more than EINVAL does.
        details = m.fs_log(context)
        text = f"{error.strerror} ({details})" if details else error.strerror
        raise OSError(error.errno, text, mount.source) from error


def _configure(context: int, fstype: str, item: str, stack: ExitStack) -> None:
    key, equals, value = item.partition("=")
    if not equals:
        m.fsconfig_flag(context, key)
    elif len(os.fsencode(value)) <= _MAX_STRING:
        m.fsconfig_string(context, key, value)
    elif fstype == "overlay" and key == "lowerdir":
        _add_layers(context, value, stack)
    elif fstype == "overlay" and key in _OVERLAY_PATHS:
        m.fsconfig_string(context, key, _short(value, stack))
    else:
        raise OSError(errno.E2BIG, f"{os.strerror(errno.E2BIG)}: option {key}")


def _add_layers(context: int, value: str, stack: ExitStack) -> None:
    """The topmost layer comes first, as in the one string; data-only layers follow a double colon."""
    for index, (key, layer) in enumerate(split_layers(value)):
        try:
            m.fsconfig_string(context, key, _short(layer, stack))
        except OSError as error:
            if index == 0 and error.errno == errno.EINVAL:
                raise _TooLongForKernel from error
            raise


def split_layers(value: str) -> list[tuple[str, str]]:
    """``lowerdir=`` as (fsconfig key, path) in order; a backslash takes the meaning from the next character."""
    layers: list[tuple[str, str]] = []
    key, path = "lowerdir+", ""
    characters = iter(value)
    for character in characters:
        if character == ":":
            if not path:
                key = "datadir+"
            else:
                layers.append((key, path))
            path = ""
        else:
            path += next(characters, "\\") if character == "\\" else character
    if path:
        layers.append((key, path))
    return layers


def join_layers(layers: Sequence[tuple[str, str]]) -> str:
    """The inverse of ``split_layers``."""
    text = ""
    for key, path in layers:
        escaped = path.replace("\\", "\\\\").replace(":", "\\:")
        text += ("" if not text else ":" if key == "lowerdir+" else "::") + escaped
    return text


def _short(path: str, stack: ExitStack) -> str:
    """``path``, or a name through a descriptor when fsconfig(2) would not take it."""
    if len(os.fsencode(path)) <= _MAX_STRING:
        return path
    return f"/proc/self/fd/{stack.enter_context(_opened(os.open(path, os.O_PATH | os.O_CLOEXEC)))}"


_CLASSIC_FLAGS = (
    (m.MOUNT_ATTR_RDONLY, m.MS_RDONLY),
    (m.MOUNT_ATTR_NOSUID, m.MS_NOSUID),
    (m.MOUNT_ATTR_NODEV, m.MS_NODEV),
    (m.MOUNT_ATTR_NOEXEC, m.MS_NOEXEC),
    (m.MOUNT_ATTR_NOATIME, m.MS_NOATIME),
    (m.MOUNT_ATTR_STRICTATIME, m.MS_STRICTATIME),
    (m.MOUNT_ATTR_NODIRATIME, m.MS_NODIRATIME),
    (m.MOUNT_ATTR_NOSYMFOLLOW, m.MS_NOSYMFOLLOW),
)


def _mount_classic(mount: RootfsMount, options: MountOptions, where: str) -> None:
    """mount(2), for kernels before 6.7 and layers that fit one page. Only overlays come here, on the rootfs itself."""
    data = ",".join(options.data)
    if len(os.fsencode(data)) > _MAX_DATA or mount.target.strip("/"):
        raise RuntimeFailure(
            f"mount {mount.type} on {where}: the kernel takes no more than {_MAX_DATA} bytes of layers"
        )
    flags = sum(flag for attr, flag in _CLASSIC_FLAGS if options.attr_set & attr)
    try:
        m.mount(mount.source or mount.type, where, mount.type, flags, data)
        if options.propagation:
            m.mount(None, where, None, options.propagation | (m.MS_REC if options.propagation_recursive else 0))
    except OSError as error:
        raise RuntimeFailure(f"mount {mount.type} on {where}: {error.strerror}") from error


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
