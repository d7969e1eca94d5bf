"""Network interfaces of the host that are moved into a container's network namespace (``linux.netDevices``).

The kernel changes namespace and name in one request, so that the interface has its old name nowhere else. It
drops the addresses, and those of IPv6 already when the interface goes down, so they are read before that and added
again: the permanent ones of global scope, as the others belong to where the interface was. When a namespace ends, the
kernel gives physical interfaces back by itself, and removes the others; a create that fails gives back what it took.
"""

from __future__ import annotations

import os

from shimd.contexts import contextmanager
from shimd.errors import RuntimeFailure
from shimd.linux.process import CLONE_NEWNET, setns
from shimd.plan.ops import NetDevice
from shimd.records import Record
from shimd.typed import Any, Iterable, Iterator

_IFA_F_PERMANENT = 0x80
_IFF_UP = 0x1
_SCOPE_GLOBAL = 0


class _Address(Record):
    family: int
    prefix_length: int
    fields: dict[str, str]


class NetDevices:
    """Those of one container; owns the descriptor ``namespace``."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        self._moved: list[tuple[NetDevice, bool]] = []

    def close(self) -> None:
        """Idempotent."""
        fd, self._namespace = self._namespace, -1
        if fd >= 0:
            os.close(fd)

    def move(self, devices: Iterable[NetDevice]) -> None:
        """Into the namespace, and up. Raises RuntimeFailure."""
        with _sides(self._namespace) as (outside, inside):
            for device in devices:
                with _explained(f"move network device {device.name} to the container"):
                    up = _move(outside, device.name, inside, device.inside)
                    self._moved.append((device, up))
                    _set_up(inside, device.inside)

    def give_back(self) -> None:
        """As they were, last one first."""
        try:
            with _sides(self._namespace) as (outside, inside):
                while self._moved:
                    device, up = self._moved.pop()
                    with _explained(f"move network device {device.name} back"):
                        _move(inside, device.inside, outside, device.name)
                        if up:
                            _set_up(outside, device.name)
        finally:
            self.close()


class _Side(Record):
    """A namespace, and rtnetlink in it."""

    namespace: int
    netlink: Any


@contextmanager
def _sides(other: int) -> Iterator[tuple[_Side, _Side]]:
    """The runtime's and the other one. A socket stays in the namespace that it was made in, so only this thread is
    elsewhere for a moment.
    """
    from pyroute2 import IPRoute  # takes longer to load than a container to make

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with IPRoute() as outside:
            setns(other, CLONE_NEWNET)
            try:
                inside = IPRoute()
            finally:
                setns(own, CLONE_NEWNET)
            with inside:
                yield _Side(own, outside), _Side(other, inside)
    finally:
        os.close(own)


@contextmanager
def _explained(attempt: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise RuntimeFailure(f"{attempt}: {os.strerror(error.code)}") from error


def _move(source: _Side, name: str, target: _Side, new_name: str) -> bool:
    """Returns whether it was up."""
    index = _index(source, name)
    if target.netlink.link_lookup(ifname=new_name):
        raise RuntimeFailure(f"network device {name} cannot be called {new_name}: File exists")
    (link,) = source.netlink.get_links(index)
    up = bool(link["flags"] & _IFF_UP)
    addresses = tuple(_addresses(source, index))
    source.netlink.link("set", index=index, state="down")
    try:
        source.netlink.link("set", index=index, net_ns_fd=target.namespace, ifname=new_name)
    except BaseException:
        if up:
            _restore(source, index, addresses)
        raise
    _add(target, _index(target, new_name), addresses)
    return up


def _restore(side: _Side, index: int, addresses: Iterable[_Address]) -> None:
    """What went away when the interface went down."""
    side.netlink.link("set", index=index, state="up")
    present = {(address.family, address.fields.get("address")) for address in _addresses(side, index)}
    _add(side, index, (new for new in addresses if (new.family, new.fields.get("address")) not in present))


def _add(side: _Side, index: int, addresses: Iterable[_Address]) -> None:
    for address in addresses:
        side.netlink.addr("add", index=index, family=address.family, prefixlen=address.prefix_length, **address.fields)


def _set_up(side: _Side, name: str) -> None:
    side.netlink.link("set", index=_index(side, name), state="up")


def _index(side: _Side, name: str) -> int:
    found = side.netlink.link_lookup(ifname=name)
    if not found:
        raise RuntimeFailure(f"network device {name} not found")
    return int(found[0])


def _addresses(side: _Side, index: int) -> Iterator[_Address]:
    for message in side.netlink.get_addr(index=index):
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        if message["scope"] == _SCOPE_GLOBAL and flags & _IFA_F_PERMANENT:
            fields = {kind: message.get_attr(f"IFA_{kind.upper()}") for kind in ("address", "local", "broadcast")}
            given = {kind: value for kind, value in fields.items() if value is not None}
            yield _Address(message["family"], message["prefixlen"], given)
