"""The config.json that `run` and `plan` send: a bundle's, or one made for a root file system; with options applied."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from clients.shimctl.connect import Failure
from shimd.oci.spec import default_spec

F = TypeVar("F", bound=Callable[..., Any])
Document = dict[str, Any]

SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
CPU_PERIOD = 100_000  # microseconds, the kernel's default


class Size(click.ParamType[int]):
    """A number of bytes with an optional unit: 512m, 2g."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).lower().removesuffix("ib").removesuffix("b")
        unit = text[-1:] if text[-1:].isalpha() else ""
        try:
            return int(float(text.removesuffix(unit)) * SIZES[unit])
        except (ValueError, KeyError, OverflowError):
            self.fail(f"{value!r} is not a size such as 512m or 2g", param, ctx)


def spec_options(function: F) -> F:
    """The options that change config.json."""
    for option in reversed(
        (
            click.option(
                "-b", "--bundle", type=click.Path(file_okay=False, path_type=Path), help="Bundle directory [default: .]"
            ),
            click.option(
                "--rootfs",
                type=click.Path(file_okay=False, path_type=Path),
                help="Run in this directory with a default config, without a bundle.",
            ),
            click.option("-t", "--tty", is_flag=True, help="Give the program a terminal."),
            click.option("-e", "--env", multiple=True, metavar="K=V", help="Set an environment variable."),
            click.option("-w", "--cwd", help="Working directory."),
            click.option("-u", "--user", metavar="UID[:GID]", help="User and group, numbers."),
            click.option("--hostname", help="Host name."),
            click.option("--read-only/--read-write", default=None, help="Mount the root file system read-only."),
            click.option("--host-network", is_flag=True, help="Share the host's network namespace."),
            click.option("--memory", type=Size(), help="Memory limit: 512m, 2g."),
            click.option("--cpus", type=click.FloatRange(min=0.01), help="CPU limit, in CPUs: 1.5."),
            click.option("--pids-limit", type=int, help="Limit of processes and threads."),
            click.option("--cap-add", multiple=True, metavar="CAP", help="Add a capability."),
            click.option("--cap-drop", multiple=True, metavar="CAP", help="Drop a capability; ALL drops every one."),
            click.option("-v", "--volume", multiple=True, metavar="SRC:DST[:ro]", help="Bind-mount a host path."),
        )
    ):
        function = option(function)
    return function


def read_bundle(bundle: Path) -> Document:
    """config.json of a bundle."""
    path = bundle / "config.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Failure(
            f"no config.json in {bundle.resolve()}", hint="make one with `shimctl spec`, or give --rootfs DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise Failure(f"read {path}: {error}") from None
    if not isinstance(document, dict):
        raise Failure(f"{path} is not a JSON object")
    return document


def has_terminal(document: Document) -> bool:
    process = document.get("process")
    return isinstance(process, dict) and bool(process.get("terminal"))


def is_cgroup2() -> bool:
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def make_spec(options: Mapping[str, Any], command: Sequence[str]) -> tuple[Path, Document]:
    """(bundle, config.json) for the options of `spec_options` and an optional command.

    Raises Failure and click.UsageError.
    """
    rootfs: Path | None = options["rootfs"]
    bundle: Path = (options["bundle"] or Path()).resolve()
    if rootfs and options["bundle"]:
        raise click.UsageError("--rootfs and --bundle exclude each other")
    if rootfs:
        if not command:
            raise click.UsageError("--rootfs needs a command to run")
        document: Document = default_spec(cgroup2=is_cgroup2())
        document["root"]["path"] = str(rootfs.resolve())
        document["process"]["terminal"] = False
        document["hostname"] = "shimd"
    else:
        document = read_bundle(bundle)
    _apply(document, options, command)
    return bundle, document


def _section(document: Document, *names: str) -> Document:
    for name in names:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise Failure(f"{name} in config.json is not an object")
    return document


def _apply(document: Document, options: Mapping[str, Any], command: Sequence[str]) -> None:
    process = _section(document, "process")
    if command:
        process["args"] = list(command)
    if options["tty"]:
        process["terminal"] = True
    process.setdefault("env", []).extend(_environment(options["env"]))
    if options["cwd"]:
        process["cwd"] = options["cwd"]
    if options["user"]:
        process["user"] = parse_user(options["user"])
    if options["hostname"]:
        document["hostname"] = options["hostname"]
    if options["read_only"] is not None:
        _section(document, "root")["readonly"] = options["read_only"]
    if options["host_network"]:
        linux = _section(document, "linux")
        linux["namespaces"] = [n for n in linux.get("namespaces", ()) if n.get("type") != "network"]
    _capabilities(process, options["cap_add"], options["cap_drop"])
    document.setdefault("mounts", []).extend(_volume(text) for text in options["volume"])
    _limits(document, options)


def _environment(items: Sequence[str]) -> list[str]:
    """K=V as given; a bare K takes the caller's value."""
    return [
        item if "=" in item else f"{item}={os.environ[item]}" for item in items if "=" in item or item in os.environ
    ]


def parse_user(text: str) -> Document:
    """UID[:GID]; names belong to images and engines, not here."""
    uid, _, gid = text.partition(":")
    if not uid.isdecimal() or not (gid or "0").isdecimal():
        raise click.BadParameter(f"{text!r} is not UID[:GID] in numbers", param_hint="--user")
    return {"uid": int(uid), "gid": int(gid or 0)}


def _capabilities(process: Document, add: Sequence[str], drop: Sequence[str]) -> None:
    if not add and not drop:
        return
    sets = process.setdefault("capabilities", {})
    added = [_capability(name) for name in add]
    dropped = {_capability(name) for name in drop}
    for name in ("bounding", "effective", "permitted"):
        kept = [] if "CAP_ALL" in dropped else [cap for cap in sets.get(name, ()) if cap not in dropped]
        sets[name] = kept + [cap for cap in added if cap not in kept]


def _capability(name: str) -> str:
    return name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"


def _volume(text: str) -> Document:
    source, _, rest = text.partition(":")
    destination, _, flags = rest.partition(":")
    if not destination:
        raise click.BadParameter(f"{text!r} is not SRC:DST[:OPTION,...]", param_hint="--volume")
    options = ["rbind", *filter(None, flags.split(","))]
    return {"destination": destination, "type": "bind", "source": os.path.abspath(source), "options": options}


def _limits(document: Document, options: Mapping[str, Any]) -> None:
    if options["memory"] is not None:
        _section(document, "linux", "resources", "memory")["limit"] = options["memory"]
    if options["cpus"] is not None:
        cpu = _section(document, "linux", "resources", "cpu")
        cpu["period"] = CPU_PERIOD
        cpu["quota"] = int(options["cpus"] * CPU_PERIOD)
    if options["pids_limit"] is not None:
        _section(document, "linux", "resources", "pids")["limit"] = options["pids_limit"]


def exec_process(spec: Mapping[str, Any], options: Mapping[str, Any], command: Sequence[str]) -> Document:
    """The process object of an exec: the container's own with the options applied, and a terminal only if asked."""
    process: Document = dict(spec.get("process") or {})
    process.pop("consoleSize", None)
    process["args"] = list(command)
    process["terminal"] = options["tty"]
    process["env"] = [*process.get("env", ()), *_environment(options["env"])]
    if options["cwd"]:
        process["cwd"] = options["cwd"]
    if options["user"]:
        process["user"] = parse_user(options["user"])
    return process


def quote(command: Sequence[str], limit: int = 60) -> str:
    """A command line for a table cell."""
    text = shlex.join(command)
    return text if len(text) <= limit else text[: limit - 1] + "…"
