"""``plan``: what ``create`` would do, in order, and none of it is done. Ours; runc has no such verb."""

from __future__ import annotations

import os

from shimd.cli.command import Call, Command, flag, text
from shimd.errors import InvalidArgument

COMMAND = Command(
    "print what create would do, in order; nothing is done",
    """[container-id]

Where "[container-id]" is what the container would be called (default: "container").""",
    options=(
        text("bundle", "path to the bundle directory (default: the current directory)", "b"),
        text("format", "select one of: table or json", "f", default="table"),
        flag("no-pivot", "do not use pivot_root; for a root file system on a ramdisk"),
        flag("no-new-keyring", "leave the container with the session keyring of the caller"),
    ),
    most=1,
)


def run(call: Call) -> int:
    from shimd.plan.wire import to_json
    from shimd.runtime.model import CreateOptions

    form = call.text("format")
    if form not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    options = CreateOptions(
        no_pivot=call.flag("no-pivot"),
        no_new_keyring=call.flag("no-new-keyring"),
        systemd_cgroup=call.settings.systemd_cgroup,
    )
    name = call.container_id if call.arguments else "container"
    plan = call.runtime().plan(name, os.path.abspath(call.text("bundle") or "."), options=options)
    for warning in plan.warnings:
        call.messages.warn(warning)
    document = to_json(plan)
    if form == "json":
        import json

        call.write(json.dumps(document, indent=2) + "\n")
    else:
        steps = (*document["stage"], *document["steps"])
        call.write("".join(f"{number:>3}  {step['text']}\n" for number, step in enumerate(steps, 1)))
    return 0
