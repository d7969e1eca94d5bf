"""``state``: the document that the specification describes."""

from __future__ import annotations

from shimd import jsontext
from shimd.cli.command import ID_ARGUMENT, Call, Command

COMMAND = Command("output the state of a container", ID_ARGUMENT, least=1, most=1)


def run(call: Call) -> int:
    with call.container() as container:
        document = call.runtime().state_document(container)
    call.write(jsontext.pretty(document, "  "))
    return 0
