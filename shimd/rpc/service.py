"""Services, whatever carries the calls.

A service is an object with one coroutine method (or asynchronous generator, for streams) per RPC, named like the RPC
in snake case, that takes a Call and the request. It raises our errors, which each transport turns into its statuses
by the one table in ``rpc/status.py``.
"""

from __future__ import annotations

import re

from google.protobuf.descriptor import ServiceDescriptor

from shimd.records import Record

DEFAULT_NAMESPACE = "default"

_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Call(Record):
    """What a service may know of a call beside its request."""

    namespace: str
    method: str
    origin: str = ""  # the name of the registered containerd that calls; "" for everybody else


class Service(Record):
    """``implementation`` served as ``descriptor``; the same object may serve several descriptors."""

    descriptor: ServiceDescriptor
    implementation: object


def rpc_name(method: str) -> str:
    """``CreateTask`` -> ``create_task``, ``CloseIO`` -> ``close_io``."""
    return _WORD.sub("_", method).lower()
