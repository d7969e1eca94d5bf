"""Run by a bare interpreter with nothing but init's own imports: prints what a new process imports beyond those.

``late_imports.py ROOT PLAN…``: each PLAN is a file of plan bytes, carried out in new mount and pid namespaces up to
the execve, or to its failure.
"""

from __future__ import annotations

import os
import sys

sys.path.append(sys.argv[1])

from shimd.init import execute
from shimd.init.context import Context
from shimd.init.request import LaunchRequest
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID
from shimd.plan import ops
from tests.kernel.cloning import clone_into_plan

KNOWN = set(sys.modules)
CONTROL = 9


def tell(ctx: Context, what: object) -> None:
    os.write(CONTROL, f"{type(what).__name__}: {sorted(set(sys.modules) - KNOWN)} {what}\n".encode())
    os._exit(0)


def main() -> None:
    os.dup2(1, CONTROL, inheritable=False)
    execute.HANDLERS[ops.Execute] = tell
    Context.report = tell  # type: ignore[method-assign,assignment]
    for plan in sys.argv[2:]:
        with open(plan, "rb") as file:
            steps = file.read()
        launched = clone_into_plan(LaunchRequest("x", CLONE_NEWNS | CLONE_NEWPID, b"", steps, (("control", CONTROL),)))
        os.waitpid(launched.pid, 0)


main()
