"""An image of busybox as a tarball that ``ctr images import`` takes: one layer, in the layout of the OCI image spec."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.rootfs import busybox_rootfs

NAME = "shimd.test/busybox:latest"
PAUSE = "shimd.test/pause:latest"  # what holds a pod's namespaces

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_VENDOR = "application/vnd.oci.image"


def build(folder: Path, name: str = NAME, command: Sequence[str] = ("/bin/sh",)) -> Path:
    """The tarball, made anew in ``folder``."""
    rootfs = folder / "busybox"
    if not rootfs.exists():
        busybox_rootfs(rootfs)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, arcname=".")
    blobs: dict[str, bytes] = {}
    layer_entry = _add(blobs, layer.getvalue(), "layer.v1.tar")
    architecture = _ARCHITECTURES[platform.machine()]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_entry["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_VENDOR}.manifest.v1+json",
        "config": _add(blobs, json.dumps(config).encode(), "config.v1+json"),
        "layers": [layer_entry],
    }
    entry = _add(blobs, json.dumps(manifest).encode(), "manifest.v1+json")
    entry["platform"] = {"architecture": architecture, "os": "linux"}
    entry["annotations"] = {"io.containerd.image.name": name}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    return _write(folder / f"{name.split('/')[1].split(':')[0]}.tar", files)


def digest(tarball: Path) -> str:
    """Of the manifest, by which an image is known."""
    with tarfile.open(tarball) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        return str(json.load(index)["manifests"][0]["digest"])


def _add(blobs: dict[str, bytes], data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": f"{_VENDOR}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def _write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
