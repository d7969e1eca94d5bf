"""``start``: make this containerd known to the daemon, which is started if need be, and tell where to call.

The forms of the answer: a plain address is understood by every containerd but taken for version 2 with ttrpc; JSON by
1.7 and later, of version 3 by 2.0 and later, which then start and delete no shim for each container of a pod; a
``BootstrapResult`` goes to those (from 2.3 on) that have written ``BootstrapParams`` to our standard input.
$SHIMD_ANSWER asks for another than what the version of containerd suggests.
"""

from __future__ import annotations

import os

from clients.containerd_shim import asker, wire
from clients.containerd_shim.errors import Malformed, UsageError
from clients.containerd_shim.flags import Flags
from clients.containerd_shim.places import Places
from clients.containerd_shim.ttrpc import Connection

SERVICE = "shimd.v1.Containerds"
SECONDS = 10.0  # for an answer of a daemon that runs

_ADDRESS_FILE = "address"


def start(flags: Flags, namespace: str, places: Places, stdin: bytes) -> bytes:
    """What belongs on standard output. The working directory is the bundle."""
    container_id = flags.required("id")
    parameters = bootstrap(stdin, namespace, container_id)
    ttrpc, grpc = _register(flags, namespace, places, parameters or {})
    address = f"unix://{ttrpc}"
    _write_address(address)
    if parameters is not None:
        return wire.number(1, 3) + wire.text(2, address) + wire.text(3, "ttrpc")
    if form := os.environ.get("SHIMD_ANSWER", ""):
        return answer(form, address, grpc)
    form = _best_form(places)
    name = known_name(flags.values.get("address", ""), namespace)
    asker.note_form(f"{places.state}/containerds/{name}.form", form)
    return answer(form, address, grpc)


def _best_form(places: Places) -> str:
    return "3" if asker.major_version(places) >= 2 else "address"


def known_name(address: str, namespace: str) -> str:
    """What the daemon's file about a containerd is called, which the script looks for before it starts us."""
    return f"{address}%{namespace}".replace("/", "%")


def bootstrap(stdin: bytes, namespace: str, container_id: str) -> wire.Fields | None:
    """The parameters, if this is what was written: older containerds write the runtime's options, an Any, whose first
    field is a type and not our id.
    """
    try:
        fields = wire.read(stdin)
        if wire.last_text(fields, 1) == container_id and wire.last_text(fields, 2) == namespace:
            return fields
    except Malformed:
        pass
    return None


def _register(flags: Flags, namespace: str, places: Places, parameters: wire.Fields) -> tuple[str, str]:
    """The paths of the daemon's sockets for this containerd: ttrpc, gRPC."""
    grpc = wire.last_text(parameters, 6) or flags.values.get("address", "")
    ttrpc = wire.last_text(parameters, 5) or os.environ.get("TTRPC_ADDRESS", "") or f"{flags.required('address')}.ttrpc"
    binary = wire.last_text(parameters, 7) or flags.values.get("publish-binary", "")
    with _connect(places) as connection:
        request = wire.text(1, ttrpc) + wire.text(2, grpc) + wire.text(3, binary) + wire.text(4, namespace)
        response = connection.call(SERVICE, "Register", request)
    return wire.last_text(response, 1), wire.last_text(response, 2)


def _connect(places: Places) -> Connection:
    try:
        return Connection(places.ttrpc_socket, SECONDS)
    except (FileNotFoundError, ConnectionRefusedError):
        from clients.containerd_shim import spawn

        return spawn.connect_or_start(places, SECONDS)


def answer(form: str, address: str, grpc: str) -> bytes:
    if form == "address":
        return address.encode()
    if form in ("2", "3"):
        return _json(int(form), address, "ttrpc")
    if form == "grpc":  # 1.7 alone: 2.x drops the connection, 1.6 reads no JSON
        return _json(2, grpc, "grpc")
    raise UsageError(f"$SHIMD_ANSWER is {form!r}; it may be address, 2, 3 or grpc")


def _json(version: int, address: str, protocol: str) -> bytes:
    escaped = address.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"version":{version},"address":"{escaped}","protocol":"{protocol}"}}'.encode()


def _write_address(address: str) -> None:
    """containerd 1.6 and 1.7 read it when they start again, to find the tasks that run."""
    temporary = f".{_ADDRESS_FILE}"
    with open(temporary, "w") as file:
        file.write(address)
    os.rename(temporary, _ADDRESS_FILE)
