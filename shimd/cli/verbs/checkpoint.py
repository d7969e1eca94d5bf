"""``checkpoint``: save the state of a running container to files. Not there yet: it says what is wrong, or so."""

from __future__ import annotations

import os

from shimd.cli.command import ID_ARGUMENT, Call, Command, flag, number, text
from shimd.cli.criu import COMMON, check_options, image_path, refuse
from shimd.errors import FailedPrecondition, InvalidArgument

COMMAND = Command(
    "checkpoint a running container",
    ID_ARGUMENT,
    description="The checkpoint command saves the state of the container.",
    options=(
        image_path("path for saving criu image files (default: ./checkpoint)"),
        text("parent-path", "path for previous criu image files in pre-dump"),
        flag("leave-running", "leave the process running after checkpointing"),
        flag("pre-dump", "dump container's memory information only, leave the container running after this"),
        flag("tcp-skip-in-flight", "skip in-flight tcp connections"),
        flag("link-remap", "allow one to link unlinked files back when possible"),
        number("status-fd", "criu writes \\0 to this FD once lazy-pages is ready", default=-1),
        text("page-server", "ADDRESS:PORT of the page server"),
        *COMMON,
    ),
    least=1,
    most=1,
)


def run(call: Call) -> int:
    with call.container() as container:
        status = call.runtime().status(container)
    if status in ("created", "stopped"):
        raise FailedPrecondition(f"Container cannot be checkpointed in {status} state")
    _check_parent(call.text("image-path") or "checkpoint", call.text("parent-path"))
    _check_page_server(call.text("page-server"))
    check_options(call)
    raise refuse("checkpoint")


def _check_parent(images: str, parent: str) -> None:
    if not parent:
        return
    if os.path.isabs(parent):
        raise InvalidArgument("--parent-path must be relative")
    path = os.path.join(images, parent)
    if not os.path.isdir(path):
        raise InvalidArgument(f"invalid --parent-path: {path} is not a directory")


def _check_page_server(server: str) -> None:
    if not server:
        return
    address, _, port = server.rpartition(":")
    if not address or not port:
        raise InvalidArgument("Use --page-server ADDRESS:PORT to specify page server")
    if not port.isdecimal() or not port.isascii():
        raise InvalidArgument("Invalid port number")
