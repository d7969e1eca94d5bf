"""Names of namespaces, containers and execs, by containerd's rule (its ``pkg/identifiers``).

They become path components and parts of cgroup names, so the rule is also what keeps ``..`` and ``/`` out of paths.
"""

from __future__ import annotations

import re

from shimd.errors import InvalidArgument

MAX_LENGTH = 76

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def check_identifier(value: str, *, kind: str) -> str:
    """Return ``value``, or raise InvalidArgument naming ``kind`` ("container id", "exec id", "namespace")."""
    if not value:
        raise InvalidArgument(f"{kind} is empty")
    if len(value) > MAX_LENGTH:
        raise InvalidArgument(f"{kind} is longer than {MAX_LENGTH} characters: {value[:MAX_LENGTH]!r}…")
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidArgument(
            f"{kind} {value!r} is malformed",
            hint="use letters and digits, with single '.', '_' or '-' between them",
        )
    return value
