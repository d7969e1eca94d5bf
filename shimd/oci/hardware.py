"""The rules about pieces of the machine that a container asks for; see ``shimd.oci.rules``."""

from __future__ import annotations

from shimd.errors import Problem
from shimd.oci.fields import pointer, show
from shimd.oci.model import Spec
from shimd.oci.values import cpu_list
from shimd.typed import Iterator

Problems = Iterator[Problem]

_NO_CLASSES = (".", "..", "info", "mon_data", "mon_groups")
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_NODES_OR_NONE = ("MPOL_PREFERRED",)


def memory_policy(spec: Spec) -> Problems:
    """set_mempolicy(2)."""
    wanted = spec.linux.memory_policy
    if wanted is None:
        return
    at = "/linux/memoryPolicy"
    count = len(cpu_list(wanted.nodes)) if wanted.nodes else 0
    if not wanted.mode:
        yield Problem(f"{at}/mode", 'invalid memory policy mode ""')
    elif wanted.mode in _WITHOUT_NODES:
        if count:
            yield Problem(f"{at}/nodes", f"{wanted.mode}: memory policy mode requires 0 nodes but got {count}")
    elif not count and wanted.mode not in _NODES_OR_NONE:
        yield Problem(f"{at}/nodes", f"{wanted.mode}: memory policy mode requires at least one node but got 0")
    if {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"} <= set(wanted.flags):
        yield Problem(f"{at}/flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")


def net_devices(spec: Spec) -> Problems:
    """``dev_valid_name`` of the kernel, and no name twice."""
    devices = spec.linux.net_devices
    if devices and spec.linux.namespace("network") is None:
        yield Problem("/linux/netDevices", "unable to move network devices without a private network namespace")
    seen: dict[str, str] = {}
    for name, device in devices.items():
        at = pointer("linux", "netDevices", name)
        if not _is_interface_name(name):
            yield Problem(at, f"invalid network device name {show(name)}")
        if device.name is not None and not _is_interface_name(device.name):
            yield Problem(f"{at}/name", f"invalid network device name {show(device.name)}")
        if "lo" in (name, device.name):
            yield Problem(at, "every network namespace has its own lo")
        inside = device.name or name
        if inside in seen:
            yield Problem(f"{at}/name", f"{show(inside)} is the name of {show(seen[inside])} in the container, too")
        seen[inside] = name


def _is_interface_name(name: str) -> bool:
    if not name or len(name.encode("utf-8", "replace")) > 15 or name in (".", ".."):  # IFNAMSIZ with a null byte
        return False
    return not any(character in "/:" or character.isspace() for character in name)


def intel_rdt(spec: Spec) -> Problems:
    """A class is a directory of resctrl, beside those that the kernel makes itself."""
    wanted = spec.linux.intel_rdt
    if wanted is None:
        return
    at, name = "/linux/intelRdt", wanted.clos_id
    if name is not None and name != "/" and (name in _NO_CLASSES or "/" in name or "\n" in name):
        yield Problem(f"{at}/closID", f"invalid intelRdt.ClosID {show(name)}")
    for number, line in enumerate(wanted.schemata):
        if "\n" in line:
            yield Problem(f"{at}/schemata/{number}", f"{show(line)} is more than one line")
