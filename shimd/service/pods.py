"""What the CRI plugin says of a pod, as the configuration of the container that holds the pod's namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from shimd.api.containerd import pod_pb2 as api
from shimd.errors import InvalidArgument
from shimd.runtime.pod import PodFiles
from shimd.runtime.state import SANDBOX_ANNOTATION

_NODE = api.NamespaceMode.NODE

# As containerd sets them for its own pause containers unless it is told otherwise: a program needs no privileges for
# port 80, or to ping, in a network that is the pod's own.
_PORTS = {"net.ipv4.ip_unprivileged_port_start": "0"}
_PING = {"net.ipv4.ping_group_range": "0 2147483647"}  # not with a user namespace, which has no such groups
_MIN_SHARES = 2


def has_user_namespace(config: api.PodSandboxConfig) -> bool:
    options = config.linux.security_context.namespace_options
    return options.HasField("userns_options") and options.userns_options.mode != _NODE


def base_of(config: api.PodSandboxConfig, sandbox_id: str, netns_path: str) -> dict[str, Any]:
    """For ``pod.config``. Raises InvalidArgument."""
    options = config.linux.security_context.namespace_options
    own_network, is_mapped = options.network != _NODE, has_user_namespace(config)
    sysctl = {**_PORTS, **({} if is_mapped else _PING)} if own_network else {}
    linux: dict[str, Any] = {
        "namespaces": _namespaces(options, netns_path),
        "sysctl": {**sysctl, **config.linux.sysctls},
        "resources": {"cpu": {"shares": _MIN_SHARES}, "devices": [{"allow": False, "access": "rwm"}]},
    }
    if is_mapped:
        linux["namespaces"].append(_entry("user"))
        linux["uidMappings"] = _mappings(options.userns_options.uids)
        linux["gidMappings"] = _mappings(options.userns_options.gids)
    if parent := config.linux.cgroup_parent:
        linux["cgroupsPath"] = _cgroups_path(parent, sandbox_id)
    base: dict[str, Any] = {"linux": linux, "annotations": _annotations(config, sandbox_id)}
    if own_network and config.hostname:
        base["hostname"] = config.hostname
    return base


def with_user_namespace(base: dict[str, Any], path: str) -> dict[str, Any]:
    """One to join in place of a new one."""
    others = [entry for entry in base["linux"]["namespaces"] if entry["type"] != "user"]
    return {**base, "linux": {**base["linux"], "namespaces": [*others, _entry("user", path)]}}


def files_of(config: api.PodSandboxConfig) -> PodFiles:
    """``hostname`` is "" for the node's."""
    own_shm = config.linux.security_context.namespace_options.ipc != _NODE
    resolver = _resolv_conf(config.dns_config) if config.HasField("dns_config") else None
    return PodFiles(config.hostname, resolver, own_shm)


def base_of_spec(spec: dict[str, Any], netns_path: str) -> dict[str, Any]:
    """From the config.json of a client that is not the CRI plugin: all but what is about a program. What is read here
    has to be of the right form; the rest is checked with the whole. Raises InvalidArgument.
    """
    linux = spec.get("linux") or {"namespaces": [_entry(kind) for kind in ("pid", "ipc", "uts", "network")]}
    if not isinstance(linux, dict):
        raise InvalidArgument("config.json: /linux: not an object")
    for key in ("namespaces", "uidMappings", "gidMappings"):
        found = linux.get(key, [])
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise InvalidArgument(f"config.json: /linux/{key}: not a list of objects")
    if netns_path:
        others = [entry for entry in linux.get("namespaces", []) if entry.get("type") != "network"]
        linux = {**linux, "namespaces": [*others, _entry("network", netns_path)]}
    kept = ("ociVersion", "hostname", "domainname", "annotations")
    return {"linux": linux, **{key: spec[key] for key in kept if key in spec}}


def _namespaces(options: api.NamespaceOption, netns_path: str) -> list[dict[str, str]]:
    found = []
    if options.network != _NODE:
        found += [_entry("uts"), _entry("network", netns_path)]
    if options.pid != _NODE:
        found.append(_entry("pid"))
    if options.ipc != _NODE:
        found.append(_entry("ipc"))
    return found


def _entry(kind: str, path: str = "") -> dict[str, str]:
    return {"type": kind, "path": path} if path else {"type": kind}


def _mappings(ranges: Iterable[api.IDMapping]) -> list[dict[str, int]]:
    return [{"containerID": r.container_id, "hostID": r.host_id, "size": r.length} for r in ranges]


def _cgroups_path(parent: str, sandbox_id: str) -> str:
    if parent.endswith(".slice"):  # for systemd, in the words in which the CRI plugin puts it for containers
        return f"{os.path.basename(parent)}:cri-containerd:{sandbox_id}"
    if not parent.startswith("/"):
        raise InvalidArgument(f"cgroup parent {parent!r} is not an absolute path")
    return os.path.join(parent, sandbox_id)


def _annotations(config: api.PodSandboxConfig, sandbox_id: str) -> dict[str, str]:
    """The names by which tools find pods, as on pause containers."""
    metadata = config.metadata
    return {
        **config.annotations,
        "io.kubernetes.cri.container-type": "sandbox",
        SANDBOX_ANNOTATION: sandbox_id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
        "io.kubernetes.cri.sandbox-log-directory": config.log_directory,
    }


def _resolv_conf(dns: api.DNSConfig) -> str:
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)
