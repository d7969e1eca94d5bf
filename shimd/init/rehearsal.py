"""Practice before the first launch: the interpreter adapts functions to what they are used for while they run, but what
it learns in a child is gone with the child. So the keeper runs what every init runs a few times itself.
"""

from __future__ import annotations

import os

from shimd.contexts import suppress
from shimd.init import mounts, rootfs, targets
from shimd.init.context import Context, StepFailed
from shimd.init.execute import execute
from shimd.linux import caps, mount
from shimd.plan import ops, wire

_ROUNDS = 20  # the interpreter begins after eight calls


def rehearse() -> None:
    """Leaves nothing: file systems are made detached and closed again. What is not permitted is not practised."""
    ctx = Context({})
    ctx.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    steps = (
        ops.Step(ops.MakeDirectory("/", 0o755), ""),
        ops.Step(ops.HomeEnv(0), ""),
        ops.Step(ops.FindProgram(("sh",), ("PATH=/bin",)), ""),
    )
    for _ in range(_ROUNDS):
        execute(ctx, wire.loads(wire.dumps(steps)))
        with suppress(OSError, StepFailed):
            _practise_mounts(ctx)
        with suppress(OSError):
            caps.capset(caps.capget())
    os.close(ctx.root)


def _practise_mounts(ctx: Context) -> None:
    for path in ("/dev", "/sys"):
        target = targets.open_directory(ctx, path)
        targets.refuse_proc(ctx, target, source_is_proc=False)
        mount.mount_id(target)
        os.close(target)
        os.close(targets.open_plain_directory(ctx, path))
    tree = mounts.new_filesystem("tmpfs", "tmpfs", ("mode=755", "size=64k"), 0)
    mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH, set=mount.MOUNT_ATTR_RDONLY)
    os.close(tree)
    os.close(mounts.clone_tree("/dev/null", recursive=False))
    os.close(rootfs.open_dev_null(ctx))
