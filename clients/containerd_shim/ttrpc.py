"""One ttrpc call at a time over a blocking socket. ``_socket`` is the C module below ``socket``, whose import is slow.

A frame: length (4 bytes, big-endian), stream id (4), type (1), flags (1), then a Request or a Response.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_STREAM, socket

from clients.containerd_shim import wire
from clients.containerd_shim.errors import CallFailed, Malformed

REQUEST, RESPONSE = 1, 2
NAMESPACE_KEY = "containerd-namespace-ttrpc"
MAX_PAYLOAD = 4 << 20

_HEADER = 10


class Connection:
    """Raises OSError for what the socket says (TimeoutError after ``seconds`` of silence), CallFailed for the server's
    errors, Malformed for nonsense.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self._socket = socket(AF_UNIX, SOCK_STREAM)
        self._stream = -1
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, service: str, method: str, payload: bytes, *, namespace: str = "") -> wire.Fields:
        """The answer's fields."""
        self._stream += 2  # a client's streams are odd, and grow
        request = wire.text(1, service) + wire.text(2, method) + wire.text(3, payload)
        if namespace:
            request += wire.text(5, wire.text(1, NAMESPACE_KEY) + wire.text(2, namespace))
        header = len(request).to_bytes(4, "big") + self._stream.to_bytes(4, "big") + bytes((REQUEST, 0))
        self._socket.sendall(header + request)
        return self._answer(method)

    def _answer(self, method: str) -> wire.Fields:
        header = self._receive(_HEADER)
        length, stream, kind = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"), header[8]
        if stream != self._stream or kind != RESPONSE or length > MAX_PAYLOAD:
            raise Malformed(f"{method}: not the answer to this call")
        response = wire.read(self._receive(length))
        if 1 in response:
            status = wire.read(wire.last_bytes(response, 1))
            if code := wire.last_number(status, 1):
                raise CallFailed(method, code, wire.last_text(status, 2))
        return wire.read(wire.last_bytes(response, 2))

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise ConnectionResetError("the daemon closed the connection")
            data += chunk
        return bytes(data)
