"""The configuration of a bundle: read, checked against the host, and remembered by its bytes."""

from __future__ import annotations

import os
from _blake2 import blake2b  # hashlib would load OpenSSL

from shimd.caches import lru_cache
from shimd.errors import InvalidArgument
from shimd.host.facts import HostFacts
from shimd.oci.model import Spec
from shimd.oci.read import CACHED_BYTES, CACHED_DOCUMENTS, MAX_BYTES, read_spec
from shimd.oci.validate import validate
from shimd.records import Record
from shimd.runtime.state import CONFIG_FILE, read_file


class Config(Record):
    """A valid config.json: its bytes, their BLAKE2b digest in hex, the model, and what validation warns of."""

    data: bytes
    digest: str
    spec: Spec
    warnings: tuple[str, ...]


def read_config(bundle: str, host: HostFacts, data: bytes | None = None) -> Config:
    """<bundle>/config.json, or ``data`` in its place; raises InvalidSpec, InvalidArgument."""
    if data is None:
        path = os.path.join(bundle, CONFIG_FILE)
        try:
            data = read_file(path, MAX_BYTES)
        except OSError as error:
            raise InvalidArgument(f"read {path}: {error.strerror}") from error
    return _remembered(data, host) if len(data) <= CACHED_BYTES else _checked(data, host)


def _checked(data: bytes, host: HostFacts) -> Config:
    spec = read_spec(data)
    return Config(data, blake2b(data, digest_size=32).hexdigest(), spec, validate(spec, host))


_checked_cached = lru_cache(CACHED_DOCUMENTS)(_checked)


def _remembered(data: bytes, host: HostFacts) -> Config:
    """Equal bytes are checked once, unless they name a namespace by path: what that path is may change."""
    config = _checked_cached(data, host)
    if any(namespace.path for namespace in config.spec.linux.namespaces):
        validate(config.spec, host)
    return config


def find_rootfs(bundle: str, spec: Spec) -> str:
    """The absolute path of the root; raises InvalidArgument when it is missing, no directory, or reached through a
    link.
    """
    path = os.path.normpath(os.path.join(bundle, spec.root.path))
    try:
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        raise InvalidArgument(f"invalid rootfs: {path}: {error.strerror}") from error
    if real != path:
        raise InvalidArgument(f"invalid rootfs: {path} is, or is below, a symlink")
    if not os.path.isdir(path):
        raise InvalidArgument(f"invalid rootfs: {path} is not a directory")
    return path
