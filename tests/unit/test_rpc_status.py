from __future__ import annotations

import errno
import logging

import grpc
import pytest

from shimd import errors
from shimd.rpc import status

CODES = {
    errors.InvalidArgument: "INVALID_ARGUMENT",
    errors.NotFound: "NOT_FOUND",
    errors.AlreadyExists: "ALREADY_EXISTS",
    errors.FailedPrecondition: "FAILED_PRECONDITION",
    errors.PermissionDenied: "PERMISSION_DENIED",
    errors.ResourceExhausted: "RESOURCE_EXHAUSTED",
    errors.Unimplemented: "UNIMPLEMENTED",
    errors.Unavailable: "UNAVAILABLE",
    errors.DeadlineExceeded: "DEADLINE_EXCEEDED",
    errors.RuntimeFailure: "UNKNOWN",
    errors.InternalError: "INTERNAL",
}
NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("cls", CODES)
def test_each_error_has_its_code(cls: type[errors.ShimdError]) -> None:
    answer = status.status_of(cls("text", hint="advice"), what="x")
    assert (NAMES[answer.code], answer.message, answer.hint) == (CODES[cls], "text", "advice")


def test_no_error_class_is_forgotten() -> None:
    def leaves(cls: type[errors.ShimdError]) -> set[type[errors.ShimdError]]:
        return {cls}.union(*(leaves(sub) for sub in cls.__subclasses__() if sub.__module__ == errors.__name__))

    for cls in leaves(errors.ShimdError) - {errors.ShimdError}:
        assert CODES.keys() & set(cls.__mro__)


def test_subclass_has_the_code_of_its_base() -> None:
    error = errors.InvalidSpec([errors.Problem("/a", "bad"), errors.Problem("/b", "worse")])
    answer = status.status_of(error, what="x")
    assert (NAMES[answer.code], answer.message) == ("INVALID_ARGUMENT", "config.json: /a: bad; /b: worse")


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ENOENT, "NOT_FOUND"),
        (errno.EEXIST, "ALREADY_EXISTS"),
        (errno.EPERM, "PERMISSION_DENIED"),
        (errno.EMFILE, "RESOURCE_EXHAUSTED"),
        (errno.EIO, "UNKNOWN"),
    ],
)
def test_system_errors(number: int, name: str) -> None:
    answer = status.status_of(OSError(number, "Some Text", "/a/path"), what="x")
    assert (NAMES[answer.code], answer.message) == (name, "/a/path: some text")


def test_unforeseen_error_is_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = status.status_of(KeyError("secret"), what="Task.Create")
    assert NAMES[answer.code] == "INTERNAL"
    assert "secret" not in answer.message
    assert "Task.Create" in answer.message
    assert caplog.records[0].exc_info is not None


def test_long_message_is_cut() -> None:
    answer = status.status_of(errors.NotFound("x" * 10_000), what="x")
    assert len(answer.message) < 2100
    assert answer.message.endswith("(7952 more characters)")
