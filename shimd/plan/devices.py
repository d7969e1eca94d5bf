"""Device nodes and links in /dev."""

from __future__ import annotations

from shimd.oci import model
from shimd.oci.values import rooted
from shimd.plan import ops
from shimd.plan.builder import Builder

# (path, major, minor): what the specification promises to every container.
_DEFAULTS = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)

_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)

_KINDS = {"c": "c", "u": "c", "b": "b", "p": "p"}


def add_devices(builder: Builder, devices: tuple[model.Device, ...], *, bind: bool) -> None:
    """The default nodes that the configuration does not have, its own ones, and the links. ``bind``: mknod(2) is not
    possible (user namespace), the host's nodes are used.
    """
    paths = [rooted(device.path) for device in devices]
    for path, major, minor in _DEFAULTS:
        if path not in paths:
            builder.add(ops.MakeDevice(path, "c", major, minor, 0o666, 0, 0, bind))
    for index, (path, device) in enumerate(zip(paths, devices, strict=True)):
        if path != "/dev/ptmx":  # always the link into the container's own devpts
            builder.add(_node(path, device, bind=bind), f"/linux/devices/{index}")
    for path, target in _LINKS:
        builder.add(ops.Symlink(path, target, replace=False, only_if=""))
    if builder.host.proc_kcore:
        builder.add(ops.Symlink("/dev/core", "/proc/kcore", replace=False, only_if=""))
    builder.add(ops.Symlink("/dev/ptmx", "pts/ptmx", replace=True, only_if=""))


def _node(path: str, device: model.Device, *, bind: bool) -> ops.MakeDevice:
    mode = 0o666 if device.file_mode is None else device.file_mode
    # A FIFO belongs to the container and can be made in any user namespace.
    return ops.MakeDevice(
        path,
        _KINDS[device.type],
        device.major,
        device.minor,
        mode,
        device.uid or 0,
        device.gid or 0,
        bind and device.type != "p",
    )
