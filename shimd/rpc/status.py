"""The one table from our errors to gRPC status codes.

containerd branches on the code (NotFound at Delete means "already gone", anything else is a failure), so a new error
class gets its row here and nowhere else. Codes are numbers, because the same table serves every transport.
"""

from __future__ import annotations

import asyncio
import errno
import logging

from shimd import errors
from shimd.records import Record

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

_BY_CLASS: dict[type[BaseException], int] = {
    errors.InvalidArgument: INVALID_ARGUMENT,
    errors.NotFound: NOT_FOUND,
    errors.AlreadyExists: ALREADY_EXISTS,
    errors.FailedPrecondition: FAILED_PRECONDITION,
    errors.PermissionDenied: PERMISSION_DENIED,
    errors.ResourceExhausted: RESOURCE_EXHAUSTED,
    errors.Unimplemented: UNIMPLEMENTED,
    errors.Unavailable: UNAVAILABLE,
    errors.DeadlineExceeded: DEADLINE_EXCEEDED,
    errors.RuntimeFailure: UNKNOWN,
    errors.InternalError: INTERNAL,
    asyncio.CancelledError: CANCELLED,
}

_BY_ERRNO = {
    errno.ENOENT: NOT_FOUND,
    errno.EEXIST: ALREADY_EXISTS,
    errno.EPERM: PERMISSION_DENIED,
    errno.EACCES: PERMISSION_DENIED,
    errno.EMFILE: RESOURCE_EXHAUSTED,
    errno.ENFILE: RESOURCE_EXHAUSTED,
    errno.ENOMEM: RESOURCE_EXHAUSTED,
    errno.ENOSPC: RESOURCE_EXHAUSTED,
}

# An HTTP/2 trailer has to fit the client's header limit (8 KiB by default), percent-encoded.
_MESSAGE_LIMIT = 2048

_log = logging.getLogger(__name__)


class Status(Record):
    """What a caller gets to see of an error."""

    code: int
    message: str
    hint: str = ""


class StatusError(Exception):
    """What a server answered to a call of ours, or, with UNAVAILABLE, that there is no server."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def status_of(error: BaseException, *, what: str) -> Status:
    """The status of ``error``; one that nobody foresaw is logged with its traceback, which the caller never sees."""
    for cls in type(error).__mro__:
        code = _BY_CLASS.get(cls)
        if code is not None:
            hint = error.hint if isinstance(error, errors.ShimdError) else ""
            if code == INTERNAL:
                _log.error("%s failed: %s", what, error, exc_info=error)
            return Status(code, _bounded(str(error) or "cancelled"), hint)
    if isinstance(error, OSError) and error.errno is not None:
        return Status(_BY_ERRNO.get(error.errno, UNKNOWN), _bounded(_os_error_text(error)))
    _log.error("%s failed unexpectedly", what, exc_info=error)
    return Status(INTERNAL, f"internal error in {what}: {type(error).__name__}; see the daemon's log")


def _os_error_text(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{(error.strerror or 'error').lower()}"


def _bounded(message: str) -> str:
    if len(message) <= _MESSAGE_LIMIT:
        return message
    return message[:_MESSAGE_LIMIT] + f"… ({len(message) - _MESSAGE_LIMIT} more characters)"
