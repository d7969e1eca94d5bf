"""The rules about ids inside and outside: of the user namespace, and of mounts that show other owners; see
``shimd.oci.rules``.
"""

from __future__ import annotations

from shimd.errors import Problem
from shimd.oci.model import IdMapping, Linux, Mount, Spec
from shimd.typed import Iterable, Iterator

Problems = Iterator[Problem]

ID_MAP_OPTIONS = ("idmap", "ridmap")


def is_bind(mount: Mount) -> bool:
    """A bind mount by its type or by its options, which win over the type."""
    return mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options


def is_id_mapped(mount: Mount) -> bool:
    return bool(mount.uid_mappings or mount.gid_mappings) or not set(ID_MAP_OPTIONS).isdisjoint(mount.options)


def user_namespace(spec: Spec) -> Problems:
    linux = spec.linux
    namespace = linux.namespace("user")
    for field, maps in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
        if namespace is None and maps:
            yield Problem(f"/linux/{field}", "given without a user namespace")
        elif namespace is not None and namespace.path is None and not maps:
            yield Problem(f"/linux/{field}", "a new user namespace needs them")


def id_mappings(spec: Spec) -> Problems:
    """user_namespaces(7): at most 340 lines, no overlap on either side."""
    yield from _of_object("/linux", spec.linux)


def _of_object(at: str, mapped: Linux | Mount) -> Problems:
    for field, maps in (("uidMappings", mapped.uid_mappings), ("gidMappings", mapped.gid_mappings)):
        if len(maps) > 340:
            yield Problem(f"{at}/{field}", f"{len(maps)} mappings are more than the kernel's 340")
            continue
        for number, mapping in enumerate(maps):
            yield from (Problem(f"{at}/{field}/{number}", text) for text in _id_mapping(mapping, maps[:number]))


def _id_mapping(mapping: IdMapping, before: tuple[IdMapping, ...]) -> Iterator[str]:
    for side, first in (("container", mapping.container_id), ("host", mapping.host_id)):
        if first + mapping.size > 2**32 - 1:
            yield f"{side} ids {first} + {mapping.size} go beyond 4294967294"
    for other in before:
        for side, one, two in (
            ("container", mapping.container_id, other.container_id),
            ("host", mapping.host_id, other.host_id),
        ):
            if one < two + other.size and two < one + mapping.size:
                yield f"{side} ids from {one} overlap with those from {two}"


def mapped_ids(spec: Spec) -> Problems:
    """Root owns what the runtime makes, and the process cannot become an id that does not exist."""
    linux, user = spec.linux, spec.process.user
    namespace = linux.namespace("user")
    if namespace is None or namespace.path is not None or not linux.uid_mappings or not linux.gid_mappings:
        return
    for field, maps in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
        if not _mapped(0, maps):
            yield Problem(f"/linux/{field}", "root (0) is not mapped")
    if not _mapped(user.uid, linux.uid_mappings):
        yield Problem("/process/user/uid", f"cannot set uid to unmapped user {user.uid} in user namespace")
    groups = [("gid", user.gid), *((f"additionalGids/{n}", gid) for n, gid in enumerate(user.additional_gids))]
    for field, gid in groups:
        if not _mapped(gid, linux.gid_mappings):
            yield Problem(f"/process/user/{field}", f"cannot set gid to unmapped group {gid} in user namespace")


def _mapped(number: int, maps: Iterable[IdMapping]) -> bool:
    return any(mapping.container_id <= number < mapping.container_id + mapping.size for mapping in maps)


def mapped_mounts(spec: Spec) -> Problems:
    """A mount without maps of its own takes those of the container's user namespace."""
    for number, mount in enumerate(spec.mounts):
        if not is_id_mapped(mount):
            continue
        at = f"/mounts/{number}"
        if not is_bind(mount):
            yield Problem(at, "id-mapped mounts are only supported for bind-mounts")
        given = bool(mount.uid_mappings), bool(mount.gid_mappings)
        if given != (True, True) and (any(given) or spec.linux.namespace("user") is None):
            yield Problem(at, "id-mapped mounts must have both uid and gid mappings specified")
        yield from _of_object(at, mount)
