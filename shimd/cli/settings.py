"""The global options and what they mean."""

from __future__ import annotations

import os

from shimd.cli.command import Command, flag, text
from shimd.cli.parse import Parsed
from shimd.errors import InvalidArgument, PermissionDenied

_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO

PROGRAM = Command(
    """Open Container Initiative runtime

{program} runs programs in containers as the specification of the Open Container
Initiative describes them. It is the runtime of shimd without the daemon, and takes
the command line of runc.

A container is described by a bundle: a directory with a specification file named
"config.json" and a root file system. To run one:

    # {program} run [ -b bundle ] <container-id>

Where "<container-id>" is your name for the container, which must be unique on this
host. The bundle is the current directory unless you name one.""",
    options=(
        flag("debug", "enable debug logging"),
        text("log", "the file that is logged to (default: standard error)"),
        text("log-format", "the format of the log: 'text' or 'json'", default="text"),
        text("root", "directory for the state of containers (this should be on a tmpfs)"),
        flag("systemd-cgroup", 'let systemd make the cgroups; cgroupsPath is then of the form "slice:prefix:name"'),
        text("rootless", "whether refused cgroup accesses are no errors: 'true', 'false' or 'auto'", default="auto"),
        flag("version", "print the version", "v"),
    ),
)


class Settings:
    """``root`` is absolute; ``rootless`` None is "auto"; ``default_root`` when ``--root`` was not given."""

    __slots__ = ("debug", "default_root", "log", "log_format", "program", "root", "rootless", "systemd_cgroup")

    def __init__(self, program: str, parsed: Parsed) -> None:
        """Raises InvalidArgument, PermissionDenied for a default root that cannot be made."""
        values = parsed.values
        self.program = program
        self.debug = values["debug"] is True
        self.log = str(values["log"])
        self.log_format = str(values["log-format"])
        self.systemd_cgroup = values["systemd-cgroup"] is True
        self.rootless = _rootless(str(values["rootless"]))
        self.default_root = "root" not in parsed.given
        self.root = _default_root() if self.default_root else _root(str(values["root"]))


def _root(path: str) -> str:
    root = os.path.abspath(path)
    if root.strip("/") == "":
        raise InvalidArgument("Option --root argument should not be set to /")
    return root


def _default_root() -> str:
    """As runc: the user's own place when there is one, unless the caller is really root."""
    place = os.environ.get("XDG_RUNTIME_DIR", "")
    if not place or not _is_rootless_user():
        return "/run/shimrun"
    root = os.path.join(os.path.abspath(place), "shimrun")
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        # The sticky bit keeps the directory from being tidied away, as the XDG specification has it.
        os.chmod(root, 0o1700)
    except OSError as error:
        raise PermissionDenied(f"make {root} in $XDG_RUNTIME_DIR: {error.strerror}") from error
    return root


def _is_rootless_user() -> bool:
    if os.geteuid() != 0:
        return True
    try:
        initial = os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    except OSError:
        initial = True
    return not initial and os.environ.get("USER") != "root"


def _rootless(value: str) -> bool | None:
    if value.lower() in ("", "auto"):
        return None
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise InvalidArgument(f'invalid value "{value}" for --rootless: neither true nor false nor auto')
