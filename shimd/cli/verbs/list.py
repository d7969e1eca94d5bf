"""``list``: the containers below ``--root``."""

from __future__ import annotations

import os
import sys

from shimd.cli.command import Call, Command, flag, text
from shimd.errors import InvalidArgument, NotFound, ShimdError
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimd.runtime.model import Container

COMMAND = Command(
    "lists containers that were made with the given root",
    """

Where the root is given by the global option "--root".

EXAMPLE:
To list the containers of another root than the default one:
       # {program} --root value list""",
    options=(
        text("format", "select one of: table or json", "f", default="table"),
        flag("quiet", "display only container IDs", "q"),
    ),
)

_COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def run(call: Call) -> int:
    form = call.text("format")
    if form not in ("table", "json") and not call.flag("quiet"):
        raise InvalidArgument("invalid format option")
    documents = _documents(call)
    if call.flag("quiet"):
        call.write("".join(f"{document['id']}\n" for document in documents))
    elif form == "json":
        call.write(_json(documents))
    else:
        from shimd.cli.table import table

        rows = [[str(document[column]) for column in _COLUMNS] for document in documents]
        call.write(table([[column.upper() for column in _COLUMNS], *rows]))
    return 0


def _json(documents: list[dict[str, Any]]) -> str:
    """An empty list is null, which is what Go makes of one, and what programs that read it expect."""
    import json

    return json.dumps(documents or None, separators=(",", ":"), ensure_ascii=False) + "\n"


def _documents(call: Call) -> list[dict[str, Any]]:
    """One container is open at a time: there may be more than we may have descriptors."""
    root = call.settings.root
    if not os.path.isdir(root):
        if call.settings.default_root:
            return []  # nothing was made yet
        raise NotFound(f"open {root}: no such file or directory")
    runtime = call.runtime()
    documents = []
    for name in runtime.ids():
        try:
            with runtime.load(name) as container:
                documents.append(runtime.state_document(container) | {"owner": _owner(container)})
        except ShimdError as error:
            if os.path.isdir(os.path.join(root, name)):  # otherwise it was deleted in this moment
                print(f"load container {name}: {error}", file=sys.stderr)
    return documents


def _owner(container: Container) -> str:
    """The name of whose the state directory is."""
    uid = os.fstat(container.directory.fd).st_uid
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
