"""Our messages and containerd's own are the same on the wire.

``containerd_api.txt`` was made from the .proto files of containerd, its cgroups library and Kubernetes' CRI: a line for
each field (name, number, type, label, as in descriptor.proto), enum value and method.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from shimd.api.containerd import (
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    metric_pb2,
    mount_pb2,
    platform_pb2,
    pod_pb2,
    process_pb2,
    runc_options_pb2,
    sandbox_pb2,
    task_events_pb2,
    task_v2_pb2,
    task_v3_pb2,
)

MODULES = (
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    metric_pb2,
    mount_pb2,
    platform_pb2,
    pod_pb2,
    process_pb2,
    runc_options_pb2,
    sandbox_pb2,
    task_events_pb2,
    task_v2_pb2,
    task_v3_pb2,
)


def _message(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    for field in message.field:
        yield f"{name}.{field.name} {field.number} {field.type} {field.label} {field.type_name}".rstrip()
    for nested in message.nested_type:
        yield from _message(name, nested)


def _lines(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield from _message(file.package, message)
    for enum in file.enum_type:
        for value in enum.value:
            yield f"{file.package}.{enum.name}.{value.name} {value.number}"
    for service in file.service:
        for method in service.method:
            yield f"{file.package}.{service.name}/{method.name} {method.input_type} {method.output_type}"


def test_same_as_containerd() -> None:
    ours: list[str] = []
    for module in MODULES:
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        ours.extend(_lines(file))
    theirs = (Path(__file__).parent / "containerd_api.txt").read_text().splitlines()
    assert sorted(ours) == theirs
