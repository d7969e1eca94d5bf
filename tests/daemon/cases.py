"""Fields of config.json, each with a script that shows what it does inside: one line of a table for each."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.specs import runc_default

Spec = dict[str, Any]


class Case(NamedTuple):
    """``change``: path in the document, from its top, to value; ``+`` as the last part appends. ``{host}`` in it is a
    folder of the host's (see ``host_folder``). ``expected`` is what the script must say; without it, what runc lets it
    say. ``alone`` is the reason why runc is not asked. ``needs`` as of ``tests.support.requires``.
    """

    name: str
    change: Mapping[str, Any]
    script: str
    expected: str | None = None
    alone: str = ""
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def spec_of(case: Case, host: Path) -> Spec:
    spec = runc_default("/bin/sh", "-c", f"exec 2>&1; {case.script}")
    spec["root"]["readonly"] = False
    spec["process"]["env"] = ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]
    for path, value in case.change.items():
        _put(spec, path.split("/"), _filled(copy.deepcopy(value), str(host)))
    return spec


def _put(place: Any, parts: list[str], value: object) -> None:
    for part in parts[:-1]:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {} if parts[-1] != "+" else [])
    if parts[-1] == "+":
        place.append(value)
    elif value is None:
        del place[parts[-1]]
    else:
        place[parts[-1]] = value


def _filled(value: Any, host: str) -> Any:
    if isinstance(value, str):
        return value.replace("{host}", host)
    if isinstance(value, list):
        return [_filled(item, host) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, host) for key, item in value.items()}
    return value


def host_folder(into: Path) -> Path:
    """What the mounts of the tables take from the host; with a mount below it that must be unmounted again."""
    for name in ("data/below", "empty", "upper", "work"):
        (into / name).mkdir(parents=True)
    (into / "data/file").write_text("from the host\n")
    (into / "single").write_text("one file\n")
    (into / "link").symlink_to("data")
    os.chmod(into, 0o755)
    return into
