"""``restore``: a container from what ``checkpoint`` saved. Not there yet: it says what is wrong, or so."""

from __future__ import annotations

from shimd.cli.command import NEW_ID_ARGUMENT, Call, Command, flag, text
from shimd.cli.criu import COMMON, check_options, image_path, refuse

COMMAND = Command(
    "restore a container from a previous checkpoint",
    NEW_ID_ARGUMENT,
    description="Restores the state of a container that was saved by the checkpoint command.",
    options=(
        image_path("path to criu image files for restoring (default: ./checkpoint)"),
        text("bundle", "path to the bundle directory (default: the current directory)", "b"),
        text("console-socket", "path to a unix socket that is sent the master end of the container's terminal"),
        text("pid-file", "the file to write the process id to"),
        flag("detach", "detach from the container's process", "d"),
        flag("no-subreaper", "do not become the parent of processes whose own has ended"),
        flag("no-pivot", "do not use pivot_root; for a root file system on a ramdisk"),
        text("lsm-profile", "LSM profile to be used during restore, in the form TYPE:NAME"),
        text("lsm-mount-context", "LSM mount context to be used during restore"),
        *COMMON,
    ),
    least=1,
    most=1,
)


def run(call: Call) -> int:
    check_options(call)
    raise refuse("restore")
