"""How the front tells the gRPC server through which socket a connection came.

A relayed connection comes from a socket that the front has given a name (abstract, unix(7)), which gRPC reports as the
caller's address. Nobody else can connect to the server's own socket, so the name can be believed. Whoever shares our
network namespace can read the names in use (/proc/net/unix), and could take the next one if it could guess it: hence
each has a random part.
"""

from __future__ import annotations

import secrets
import socket

_PREFIX = f"shimd-{secrets.token_hex(8)}"


def name_after(sock: socket.socket, origin: str) -> None:
    """Before it connects. ``origin`` has letters and digits only."""
    sock.bind(f"\0{_PREFIX}/{origin}/{secrets.token_hex(8)}")


def origin_of(peer: str) -> str:
    """From the address of a caller as gRPC has it; "" when it came through no socket of a containerd."""
    prefix, _, rest = peer.removeprefix("unix-abstract:").partition("/")
    return rest.partition("/")[0] if prefix == _PREFIX else ""
