"""Between what the runtime speaks and what goes over the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shimd.api.containerd import mount_pb2
from shimd.api.v1 import runtime_pb2
from shimd.runtime.rootfs import RootfsMount


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
