"""Namespaces that are joined by path."""

from __future__ import annotations

import errno
import os

from shimd.errors import InvalidArgument
from shimd.linux.process import NAMESPACE_FILES, namespace_type
from shimd.plan.ops import NamespaceFile


def open_namespace(file: NamespaceFile) -> int:
    """Raises InvalidArgument for a path that is not a namespace of the wanted type."""
    kind = NAMESPACE_FILES[file.type]
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidArgument(f"join {kind} namespace {file.path}: {error.strerror}") from error
    try:
        found = namespace_type(fd)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EBADF):
            raise
        raise InvalidArgument(f"join {kind} namespace {file.path}: not a namespace") from error
    if found != file.type:
        os.close(fd)
        other = NAMESPACE_FILES.get(found, str(found))
        raise InvalidArgument(f"join {kind} namespace {file.path}: it is a {other} namespace")
    return fd
