"""The errors that shimd reports, one class per meaning that a caller branches on.

A message is *attempt + object*, lower case, without a full stop; a cause is chained with ``from`` and its errno text
comes last. Advice for a person is a second field, ``hint``, which only the command lines print. ``OSError`` from
``shimd.linux`` passes unchanged until a layer that knows what was attempted wraps it.
"""

from __future__ import annotations


class ShimdError(Exception):
    """Base of every error that is reported to a user; raise a subclass."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidArgument(ShimdError):
    """A request, file or option is malformed, whatever the state of the system."""


def os_error_text(error: OSError) -> str:
    """The path, where the error has one, and the text of its number."""
    text = error.strerror or str(error)
    path = error.filename
    return f"{path.decode(errors='surrogateescape') if isinstance(path, bytes) else path}: {text}" if path else text


class Problem(tuple[str, str]):
    """One finding of validation: (JSON pointer into the document, text)."""

    __slots__ = ()

    def __new__(cls, pointer: str, text: str) -> Problem:
        return super().__new__(cls, (pointer, text))

    @property
    def pointer(self) -> str:
        return self[0]

    @property
    def text(self) -> str:
        return self[1]

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.text}"


class InvalidSpec(InvalidArgument):
    """config.json (or a process or resources document) is refused; carries every problem found, in document order."""

    def __init__(self, problems: list[Problem], *, document: str = "config.json") -> None:
        self.problems = tuple(problems)
        super().__init__(f"{document}: " + "; ".join(str(p) for p in self.problems))


class NotFound(ShimdError):
    """The container, exec, cgroup or file named does not exist."""


class AlreadyExists(ShimdError):
    """The id is taken."""


class FailedPrecondition(ShimdError):
    """The container or process is in a state that does not allow the operation."""


class PermissionDenied(ShimdError):
    """The caller, or shimd itself, lacks a privilege."""


class ResourceExhausted(ShimdError):
    """A limit of memory, descriptors, message size or queue length was hit."""


class Unimplemented(ShimdError):
    """The request is understood and deliberately not supported."""


class Unavailable(ShimdError):
    """The daemon or the keeper cannot be reached; trying again may help."""


class DeadlineExceeded(ShimdError):
    """An operation did not finish in its time."""


class RuntimeFailure(ShimdError):
    """The kernel, a hook or the program refused: a container or process could not be made (gRPC UNKNOWN)."""


class InternalError(ShimdError):
    """A bug of shimd itself; never caused by what the user asked for."""
