"""The options of a mount in config.json: which are flags, and what each flag is under the new mount API.

mount(2) knows one word of flags. In fsopen(2) and mount_setattr(2) they are of three kinds: attributes of the mount
(MOUNT_ATTR_*), parameters of the superblock (``ro``, ``sync``, ``dirsync``, ``mand``, ``lazytime``), and those without
a meaning any more (``iversion``, ``silent``, ``loud``), which are accepted for the sake of old configurations.

Attributes of a fresh mount and of a bind differ in what is *not* asked for: a bind that asks for any flag loses the
flags of its source that it did not ask for, as MS_REMOUNT|MS_BIND has it, but keeps the access time mode.
"""

from __future__ import annotations

from shimd.caches import lru_cache
from shimd.linux.mount import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    MS_BIND,
    MS_DIRSYNC,
    MS_I_VERSION,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
)
from shimd.oci.mappings import ID_MAP_OPTIONS
from shimd.plan.ops import MountAttr
from shimd.records import Record

_SET = {
    "bind": MS_BIND,
    "defaults": 0,
    "dirsync": MS_DIRSYNC,
    "iversion": MS_I_VERSION,
    "lazytime": MS_LAZYTIME,
    "mand": MS_MANDLOCK,
    "noatime": MS_NOATIME,
    "nodev": MS_NODEV,
    "nodiratime": MS_NODIRATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "nosymfollow": MS_NOSYMFOLLOW,
    "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME,
    "remount": MS_REMOUNT,
    "ro": MS_RDONLY,
    "silent": MS_SILENT,
    "strictatime": MS_STRICTATIME,
    "sync": MS_SYNCHRONOUS,
}

_CLEAR = {
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "dev": MS_NODEV,
    "diratime": MS_NODIRATIME,
    "exec": MS_NOEXEC,
    "loud": MS_SILENT,
    "noiversion": MS_I_VERSION,
    "nolazytime": MS_LAZYTIME,
    "nomand": MS_MANDLOCK,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "symfollow": MS_NOSYMFOLLOW,
}

PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
}

# (attribute, value when the option is a "set" one): the access time modes are one field of several bits.
_RECURSIVE = {
    "ratime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_RELATIME),
    "rdev": (MOUNT_ATTR_NODEV, 0),
    "rdiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "rexec": (MOUNT_ATTR_NOEXEC, 0),
    "rnoatime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME),
    "rnodev": (MOUNT_ATTR_NODEV, MOUNT_ATTR_NODEV),
    "rnodiratime": (MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NODIRATIME),
    "rnoexec": (MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOEXEC),
    "rnorelatime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_RELATIME),
    "rnostrictatime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_RELATIME),
    "rnosuid": (MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSUID),
    "rnosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW),
    "rrelatime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_RELATIME),
    "rro": (MOUNT_ATTR_RDONLY, MOUNT_ATTR_RDONLY),
    "rrw": (MOUNT_ATTR_RDONLY, 0),
    "rstrictatime": (MOUNT_ATTR__ATIME, MOUNT_ATTR_STRICTATIME),
    "rsuid": (MOUNT_ATTR_NOSUID, 0),
    "rsymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
}

_ATTRIBUTES = (
    (MS_RDONLY, MOUNT_ATTR_RDONLY),
    (MS_NOSUID, MOUNT_ATTR_NOSUID),
    (MS_NODEV, MOUNT_ATTR_NODEV),
    (MS_NOEXEC, MOUNT_ATTR_NOEXEC),
    (MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW),
    (MS_NODIRATIME, MOUNT_ATTR_NODIRATIME),
)

_SUPERBLOCK = (
    (MS_RDONLY, "ro"),
    (MS_SYNCHRONOUS, "sync"),
    (MS_DIRSYNC, "dirsync"),
    (MS_MANDLOCK, "mand"),
    (MS_LAZYTIME, "lazytime"),
)

_ATIME_MODES = MS_NOATIME | MS_RELATIME | MS_STRICTATIME
_REMOUNTED = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW

OPTION_NAMES = tuple(sorted({*_SET, *_CLEAR, *PROPAGATION, *_RECURSIVE, *ID_MAP_OPTIONS, "tmpcopyup"}))


class MountOptions(Record):
    """``flags`` and ``cleared`` are MS_* masks of the plain options; ``more`` are the propagation and recursive
    options, in the order in which they are applied; ``data`` goes to the file system, ``first_data`` is the index of
    its first option or -1. ``map_all``: the ids of all mounts of the tree are mapped, not just those of its top.
    """

    flags: int
    cleared: int
    more: tuple[MountAttr, ...]
    data: tuple[str, ...]
    first_data: int
    copy_up: bool
    map_all: bool


@lru_cache(maxsize=1024)
def parse_options(options: tuple[str, ...]) -> MountOptions:
    flags = cleared = recursive_set = recursive_clear = 0
    propagation: list[MountAttr] = []
    data: list[str] = []
    first_data = -1
    map_all = False
    for index, option in enumerate(options):
        if option in _SET:
            flags |= _SET[option]
            cleared &= ~_SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
            cleared |= _CLEAR[option]
        elif option in PROPAGATION:
            propagation.append(propagation_attr(PROPAGATION[option]))
        elif option in _RECURSIVE:
            mask, value = _RECURSIVE[option]
            recursive_set = recursive_set & ~mask | value
            # Setting an access time mode needs the whole field cleared, see mount_setattr(2).
            recursive_clear = recursive_clear & ~mask | (mask if mask == MOUNT_ATTR__ATIME else mask & ~value)
        elif option in ID_MAP_OPTIONS:
            map_all = option == "ridmap"
        elif option != "tmpcopyup" and option:
            data += _split(option)
            first_data = index if first_data < 0 else first_data
    recursive = [MountAttr(recursive_set, recursive_clear, 0, recursive=True)]
    return MountOptions(
        flags,
        cleared,
        (*propagation, *(recursive if recursive_set or recursive_clear else ())),
        tuple(data),
        first_data,
        "tmpcopyup" in options,
        map_all,
    )


def propagation_attr(flags: int) -> MountAttr:
    """``flags`` of mount(2), MS_REC included."""
    return MountAttr(0, 0, flags & ~MS_REC, recursive=bool(flags & MS_REC))


def _split(option: str) -> list[str]:
    """mount(2) takes "size=1m,mode=700" as two options; fsconfig(2) refuses a comma. Inside the double quotes of a
    SELinux context it is no separator, and the quotes are not part of the value.
    """
    if 'context="' not in option:
        return [part for part in option.split(",") if part]
    parts = [""]
    for number, text in enumerate(option.split('"')):
        if number % 2:
            parts[-1] += text
        else:
            first, *rest = text.split(",")
            parts[-1] += first
            parts += rest
    return [part for part in parts if part]


def fresh_attributes(flags: int) -> int:
    """The MOUNT_ATTR_* for fsmount(2); ``relatime`` is the default, and ``strictatime`` wins over ``noatime``."""
    attributes = _plain_attributes(flags)
    if flags & MS_STRICTATIME:
        return attributes | MOUNT_ATTR_STRICTATIME
    return attributes | MOUNT_ATTR_NOATIME if flags & MS_NOATIME else attributes


def remount_attr(flags: int) -> MountAttr:
    """mount_setattr(2)'s equal of MS_REMOUNT|MS_BIND with these flags."""
    attributes = _plain_attributes(flags)
    if flags & (_ATIME_MODES | MS_NODIRATIME):
        changed = _REMOUNTED | MOUNT_ATTR_NODIRATIME
        return MountAttr(fresh_attributes(flags), changed & ~attributes | MOUNT_ATTR__ATIME, 0, recursive=False)
    return MountAttr(attributes, _REMOUNTED & ~attributes, 0, recursive=False)


def cleared_attributes(cleared: int) -> int:
    """The MOUNT_ATTR_* that the options ask to be absent."""
    attributes = _plain_attributes(cleared)
    if cleared & MS_STRICTATIME:
        attributes |= MOUNT_ATTR_STRICTATIME
    return attributes | MOUNT_ATTR_NOATIME if cleared & MS_NOATIME else attributes


def superblock_options(flags: int) -> tuple[str, ...]:
    """The flags that fsconfig(2) takes as parameters of any file system."""
    return tuple([name for flag, name in _SUPERBLOCK if flags & flag])


def _plain_attributes(flags: int) -> int:
    attributes = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            attributes |= attribute
    return attributes
