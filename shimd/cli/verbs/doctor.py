"""``doctor``: what this host offers to containers, and what it lacks. Ours; runc has no such verb."""

from __future__ import annotations

from shimd.cli.command import Call, Command, text
from shimd.errors import InvalidArgument

COMMAND = Command(
    "show what this host offers and lacks, with reason and remedy",
    description="The exit code is 1 when something is lacking.",
    options=(text("format", "select one of: table or json", "f", default="table"),),
)


def run(call: Call) -> int:
    from shimd.host.doctor import doctor
    from shimd.host.facts import probe

    form = call.text("format")
    if form not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    findings = doctor(probe())
    if form == "json":
        import json

        call.write(json.dumps([finding._asdict() for finding in findings], indent=2, ensure_ascii=False) + "\n")
    else:
        for finding in findings:
            remedy = f"      {finding.remedy}\n" if finding.remedy else ""
            call.write(f"{'ok  ' if finding.ok else 'lack'}  {finding.name}: {finding.reason}\n{remedy}")
    return 0 if all(finding.ok for finding in findings) else 1
