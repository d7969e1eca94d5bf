"""Between what the runtime speaks and what goes over the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from shimd.api.containerd import mount_pb2, runc_options_pb2
from shimd.api.v1 import runtime_pb2
from shimd.errors import InvalidArgument, Unimplemented
from shimd.runtime.model import CreateOptions
from shimd.runtime.rootfs import RootfsMount


class Options(NamedTuple):
    """What of containerd.runc.v1.Options concerns us."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    io_uid: int = 0
    io_gid: int = 0


def read_options(packed: Any) -> Options:
    """Raises InvalidArgument for a foreign type, Unimplemented for an option that must not be ignored."""
    if not packed.type_url:
        return Options()
    name = packed.type_url.rpartition("/")[2]
    if name != runc_options_pb2.Options.DESCRIPTOR.full_name:
        raise InvalidArgument(f"options of type {name!r} are not understood")
    try:
        options = runc_options_pb2.Options.FromString(packed.value)
    except DecodeError as error:
        raise InvalidArgument(f"options are malformed: {error}") from error
    if options.systemd_cgroup:
        raise Unimplemented("option systemd_cgroup: the systemd cgroup driver is not supported yet")
    return Options(options.no_pivot_root, options.no_new_keyring, options.io_uid, options.io_gid)


def create_options(options: Options, *, gate: bool) -> CreateOptions:
    return CreateOptions(gate=gate, no_pivot=options.no_pivot_root, no_new_keyring=options.no_new_keyring)


def pack(message: Message) -> Any:
    """containerd names types without the usual "type.googleapis.com/"."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def mounts(messages: Iterable[mount_pb2.Mount]) -> tuple[RootfsMount, ...]:
    return tuple(RootfsMount(m.type, m.source, m.target, tuple(m.options)) for m in messages)


def mount_message(mount: RootfsMount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def timestamp(nanoseconds: int) -> Timestamp | None:
    """None, which leaves a field unset, for 0."""
    if not nanoseconds:
        return None
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(rfc3339: str) -> int:
    parsed = Timestamp()
    parsed.FromJsonString(rfc3339)
    return parsed.ToNanoseconds()


def duration(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)


def phases(timings: Mapping[str, float]) -> list[runtime_pb2.Phase]:
    """From milliseconds."""
    return [runtime_pb2.Phase(name=name, duration=duration(round(ms * 1e6))) for name, ms in timings.items()]
