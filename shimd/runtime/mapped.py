"""Root file systems whose files have other owners than on the disk, as pods with a user namespace need them.

containerd asks for it by two options in its own words: ``uidmap=CONTAINER:HOST:SIZE`` and ``gidmap=``, of several
ranges with commas between them. A mount is mapped itself; of an overlay, which the kernel cannot map, the layers are,
all at once through the one directory that containerd keeps them in. An overlay wants mounts that are attached
somewhere, and keeps its own copies of them: so the directory is mapped to a place beside the rootfs for a moment.
"""

from __future__ import annotations

import os

from shimd.contexts import contextmanager
from shimd.errors import InvalidArgument, RuntimeFailure, Unimplemented
from shimd.linux import mount as m
from shimd.plan.ops import IdMap
from shimd.records import Record
from shimd.typed import Callable, Iterator, Sequence

# Maps a detached tree, which stays the caller's.
MapTree = Callable[[int, "Maps"], None]

_UID, _GID = "uidmap=", "gidmap="
OPTIONS = (_UID, _GID)


def cannot_map(tree: int, maps: Maps) -> None:
    """For who has no launcher, which makes the user namespaces."""
    raise Unimplemented("mounts with mapped ids are not supported here")


class Maps(Record):
    uid: tuple[IdMap, ...]
    gid: tuple[IdMap, ...]


def read(options: Sequence[str]) -> Maps | None:
    """Those among a mount's options. Raises InvalidArgument."""
    values = {key: [option.removeprefix(key) for option in options if option.startswith(key)] for key in OPTIONS}
    if not any(values.values()):
        return None
    if not all(len(value) == 1 for value in values.values()):
        raise InvalidArgument("rootfs mount options uidmap and gidmap: each is needed once")
    return Maps(*(_ranges(key, value) for key, (value,) in values.items()))


def _ranges(key: str, value: str) -> tuple[IdMap, ...]:
    try:
        return tuple(IdMap(*_numbers(part)) for part in value.split(","))
    except ValueError:
        raise InvalidArgument(f"rootfs mount option {key + value!r} is not CONTAINER:HOST:SIZE") from None


def _numbers(part: str) -> tuple[int, int, int]:
    container, host, size = part.split(":")
    if not all(word.isascii() and word.isdecimal() for word in (container, host, size)) or not int(size):
        raise ValueError
    return int(container), int(host), int(size)


@contextmanager
def mapped_layers(bundle: str, layers: Sequence[str], maps: Maps, map_tree: MapTree) -> Iterator[tuple[str, ...]]:
    """The paths by which an overlay has to be given its layers. Raises RuntimeFailure."""
    common = os.path.commonpath([os.path.dirname(os.path.realpath(layer)) for layer in layers])
    if common == "/":
        raise RuntimeFailure(f"map the layers of an overlay: {layers[0]} and the others have no directory in common")
    place = os.path.join(bundle, f".layers-{os.urandom(4).hex()}")
    os.mkdir(place, 0o700)
    try:
        _attach(common, place, maps, map_tree)
        try:
            yield tuple(os.path.join(place, os.path.relpath(os.path.realpath(layer), common)) for layer in layers)
        finally:
            m.umount2(place, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
    finally:
        os.rmdir(place)


def _attach(source: str, place: str, maps: Maps, map_tree: MapTree) -> None:
    tree = m.open_tree(m.AT_FDCWD, source, m.OPEN_TREE_CLONE)
    try:
        m.mount_setattr(tree, "", m.AT_EMPTY_PATH, set=m.MOUNT_ATTR_RDONLY)
        m.mount_setattr(tree, "", m.AT_EMPTY_PATH, propagation=m.MS_PRIVATE)
        map_tree(tree, maps)
        m.move_mount(tree, "", m.AT_FDCWD, place, m.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
