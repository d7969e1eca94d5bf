"""The options that ``checkpoint`` and ``restore`` have in common, and what is wrong with them."""

from __future__ import annotations

from shimd.cli.command import Call, Option, flag, text, texts
from shimd.errors import InvalidArgument, Unimplemented

COMMON = (
    text("work-path", "path for saving work files and logs"),
    flag("tcp-established", "allow open tcp connections"),
    flag("ext-unix-sk", "allow external unix sockets"),
    flag("shell-job", "allow shell jobs"),
    flag("file-locks", "handle file locks, for safety"),
    flag("lazy-pages", "use userfaultfd to lazily restore memory pages"),
    text("manage-cgroups-mode", "cgroups mode: soft|full|strict|ignore (default: soft)"),
    texts("empty-ns", "create a namespace, but don't restore its properties"),
    flag("auto-dedup", "enable auto deduplication of memory images"),
)

_MODES = ("", "soft", "full", "strict", "ignore")


def image_path(help_: str) -> Option:
    return text("image-path", help_, default="")


def check_options(call: Call) -> None:
    """Raises InvalidArgument."""
    mode = call.text("manage-cgroups-mode")
    if mode not in _MODES:
        raise InvalidArgument(f'invalid manage-cgroups-mode "{mode}": neither soft nor full nor strict nor ignore')
    for namespace in call.texts("empty-ns"):
        if namespace != "network":
            raise InvalidArgument(f'namespace "{namespace}" is not supported')


def refuse(what: str) -> Unimplemented:
    return Unimplemented(f"{what} is not supported yet")
