"""Who may talk to the daemon, decided by the credentials that the kernel noted when the peer connected (unix(7))."""

from __future__ import annotations

import logging
import os
import socket
import struct

_UCRED = struct.Struct("3i")

_log = logging.getLogger(__name__)


def may_connect(peer: socket.socket, allowed_uids: frozenset[int]) -> bool:
    """Root may, the daemon's own user with the daemon's own group, and ``allowed_uids``. A refusal is logged."""
    pid, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid == 0 or uid in allowed_uids or (uid, gid) == (os.geteuid(), os.getegid()):
        return True
    _log.warning("refused a connection of uid %d, gid %d (process %d)", uid, gid, pid)
    return False
