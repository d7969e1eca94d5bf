"""The debug log of a launch: its phases and the time that each took.

Where runc's debug log has the same moment, it is in runc's words, which scripts look for.
"""

from __future__ import annotations

from shimd.cli.messages import Messages
from shimd.host.facts import HostFacts
from shimd.typed import TYPE_CHECKING, Mapping

if TYPE_CHECKING:
    from shimd.oci.model import Seccomp

_STAGES = {"launch": "nsexec container setup", "until ready": "child process in init()"}
_MADE = "init: closing the pipe to signal completion"

CREATE = {**_STAGES, "created": _MADE, "executed": _MADE}
EXEC = {**_STAGES, "executed": "setns_init: about to exec"}


def log_phases(messages: Messages, timings: Mapping[str, float], words: Mapping[str, str]) -> None:
    if messages.debugging:
        for phase, milliseconds in timings.items():
            known = f"{words[phase]}: " if phase in words else ""
            messages.debug(f"{known}{phase}: {milliseconds:.1f} ms")


def log_protection(messages: Messages, program: str, protection: str) -> None:
    messages.debug(f"{program} exeseal: using {protection} for sealed /proc/self/exe")
    messages.debug(f"{program} exeseal: using /proc/self/exe clone")


def log_filter(messages: Messages, profile: Seccomp | None, host: HostFacts) -> None:
    if profile is not None and messages.debugging:
        from shimd.plan.seccomp import filter_flags

        messages.debug(f"seccomp filter flags: {filter_flags(profile, host)}")


def log_affinity(messages: Messages, cpus: tuple[int, ...]) -> None:
    """Of the process from its birth on."""
    if cpus:
        messages.debug(f"nsexec: affinity: {sum(1 << cpu for cpu in cpus):#x}")
