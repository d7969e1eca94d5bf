"""Where the daemon is: $SHIMD_CONFIG names its settings, else /etc/shimd/config.toml, which may be missing.

The settings are read line by line: tomllib takes longer to import than the launcher may run, and nothing but a few
strings at the top is of interest here. What is written in another way than ``key = "value"`` tomllib reads after all.
"""

from __future__ import annotations

import os

DEFAULT_CONFIG = "/etc/shimd/config.toml"

_DEFAULTS = {"state": "/run/shimd", "socket": "/run/shimd/shimd.sock", "ttrpc_socket": ""}


class Places:
    """``config`` is "" without one."""

    __slots__ = ("config", "state", "ttrpc_socket")

    def __init__(self, config: str, state: str, ttrpc_socket: str) -> None:
        self.config = config
        self.state = state
        self.ttrpc_socket = ttrpc_socket

    def container(self, namespace: str, container_id: str) -> str:
        return f"{self.state}/containers/{namespace}/{container_id}"


def find() -> Places:
    """Raises OSError, or ValueError for settings that are no TOML."""
    config = os.environ.get("SHIMD_CONFIG", "")
    try:
        with open(config or DEFAULT_CONFIG, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        if config:
            raise
        return _places("", _DEFAULTS)
    return _places(config or DEFAULT_CONFIG, _DEFAULTS | _strings(data))


def _places(config: str, settings: dict[str, str]) -> Places:
    """Without a path of its own the ttrpc socket is beside the other."""
    beside = settings["socket"].removesuffix(".sock") + ".ttrpc.sock"
    return Places(config, settings["state"], settings["ttrpc_socket"] or beside)


def _strings(data: bytes) -> dict[str, str]:
    found = {}
    for line in data.decode().splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if line.lstrip().startswith("["):
            break
        if equals and key in _DEFAULTS:
            text = value[1:-1]
            if len(value) < 2 or not value[0] == value[-1] == '"' or '"' in text or "\\" in text:
                return _strings_of_toml(data)
            found[key] = text
    return found


def _strings_of_toml(data: bytes) -> dict[str, str]:
    import tomllib

    document = tomllib.loads(data.decode())
    return {key: str(document[key]) for key in _DEFAULTS if key in document}
