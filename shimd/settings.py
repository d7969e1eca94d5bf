"""The daemon's settings: TOML, every key with a default, an unknown key refused by name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from shimd.errors import InvalidArgument

DEFAULT_CONFIG = "/etc/shimd/config.toml"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"  # debug, info, warning, error
    format: str = "text"  # text, json


@dataclass(frozen=True, slots=True)
class ApiSettings:
    max_message_bytes: int = 16 * _KIB * _KIB
    # Users beside root and the daemon's own that may connect. The socket stays 0600: give them access to it as well.
    allowed_uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EventSettings:
    keep: int = 4096  # events kept for replay


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    # Operations on containers that run at the same time. More than the machine's processors by a few: an operation
    # waits for its init process most of the time.
    workers: int = field(default_factory=lambda: min(32, 4 + 2 * (os.cpu_count() or 1)))
    seccomp_cache: str = "/var/cache/shimd/seccomp"
    drain_seconds: float = 10.0  # how long Delete waits for output to be delivered


@dataclass(frozen=True, slots=True)
class Settings:
    socket: str = "/run/shimd/shimd.sock"  # gRPC
    ttrpc_socket: str = ""  # "": beside the other, as in /run/shimd/shimd.ttrpc.sock
    state: str = "/run/shimd"
    log: LogSettings = LogSettings()
    api: ApiSettings = ApiSettings()
    events: EventSettings = EventSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @property
    def ttrpc_path(self) -> str:
        return self.ttrpc_socket or self.socket.removesuffix(".sock") + ".ttrpc.sock"


_CHOICES = {"log.level": ("debug", "info", "warning", "error"), "log.format": ("text", "json")}
_MINIMUM = {"api.max_message_bytes": 64 * _KIB, "events.keep": 1, "runtime.workers": 1, "runtime.drain_seconds": 0}
_ABSOLUTE = ("socket", "ttrpc_socket", "state", "runtime.seccomp_cache")

T = TypeVar("T")


def load_settings(path: str, *, required: bool) -> Settings:
    """The settings in the file at ``path``; without the file the defaults, unless it is ``required``."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError as error:
        if required:
            raise InvalidArgument(f"reading settings {path}: no such file") from error
        return Settings()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"reading settings {path}: {error}") from error
    return parse_settings(document, source=path)


def parse_settings(document: Mapping[str, Any], *, source: str) -> Settings:
    """Raises InvalidArgument that names every key that is unknown or has a wrong value."""
    problems: list[str] = []
    settings = _parse(Settings, document, "", problems)
    if problems:
        raise InvalidArgument(f"settings in {source}: " + "; ".join(problems))
    return settings


def _parse(cls: type[T], table: Mapping[str, Any], prefix: str, problems: list[str]) -> T:
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        wanted = types.get(key)
        if wanted is None:
            problems.append(f"unknown key {name}")
        elif isinstance(wanted, type) and hasattr(wanted, "__dataclass_fields__"):
            if isinstance(value, dict):
                values[key] = _parse(wanted, value, name + ".", problems)
            else:
                problems.append(f"{name} must be a table")
        else:
            values[key] = _checked(name, value, wanted, problems)
    return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})  # type: ignore[arg-type]


def _checked(name: str, value: Any, wanted: Any, problems: list[str]) -> Any:
    if get_origin(wanted) is tuple:
        item = get_args(wanted)[0]
        if isinstance(value, list) and all(type(v) is item for v in value):
            return tuple(value)
        problems.append(f"{name} must be a list of {item.__name__}")
    elif wanted is float and type(value) is int:
        return _checked(name, float(value), float, problems)
    elif type(value) is not wanted:
        problems.append(f"{name} must be of type {wanted.__name__}")
    elif name in _CHOICES and value not in _CHOICES[name]:
        problems.append(f"{name} must be one of {', '.join(_CHOICES[name])}")
    elif name in _MINIMUM and not value >= _MINIMUM[name]:
        problems.append(f"{name} must be at least {_MINIMUM[name]}")
    elif name in _ABSOLUTE and not value.startswith("/"):
        problems.append(f"{name} must be an absolute path")
    return value
