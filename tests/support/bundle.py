"""OCI bundles: a folder with config.json."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def make_bundle(folder: Path, spec: Mapping[str, Any], rootfs: Path | None = None) -> Path:
    """Write ``spec`` as config.json of the folder, which is made if it is missing; with ``rootfs`` as its root.path."""
    folder.mkdir(mode=0o755, exist_ok=True)
    document = dict(copy.deepcopy(spec))
    if rootfs is not None:
        document["root"] = {**document.get("root", {}), "path": str(rootfs)}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def remove_tree(folder: Path) -> None:
    """Remove a folder of test data, unless something is mounted in it: then its files may be the host's own."""
    inside = os.path.realpath(folder) + "/"
    with open("/proc/self/mountinfo") as file:
        mounted = [line.split()[4] for line in file if f"{line.split()[4]}/".startswith(inside)]
    if mounted:
        raise AssertionError(f"still mounted, so not removed: {', '.join(mounted)}")
    shutil.rmtree(folder)
