"""``kill``: a signal for the init of a container."""

from __future__ import annotations

from shimd.cli.command import Call, Command, flag
from shimd.errors import InvalidArgument, NotFound

_HIGHEST = 64

COMMAND = Command(
    "sends a signal (default: SIGTERM) to the init process of the container",
    """<container-id> [signal]

Where "<container-id>" is the name of the container and "[signal]" the name or the
number of the signal. For example, to kill the container "ubuntu01":

       # {program} kill ubuntu01 KILL""",
    options=(flag("all", "no error for a container that is not running", "a", hidden=True),),
    least=1,
    most=2,
    stop_at=1,
)


def run(call: Call) -> int:
    with call.container() as container:
        number = parse_signal(call.arguments[1] if len(call.arguments) > 1 else "")
        try:
            call.runtime().kill(container, number)
        except NotFound:
            if not call.flag("all"):
                raise
    return 0


def parse_signal(text: str) -> int:
    """A number, or a name with or without SIG in any case; "" is SIGTERM. Raises InvalidArgument."""
    if text.lstrip("+-").isdecimal() and text.isascii():
        number = int(text[:10])  # more digits than the interpreter would convert are none the less too many
        if not 0 <= number <= _HIGHEST:
            raise InvalidArgument(f'unknown signal "{text}": not from 0 to {_HIGHEST}')
        return number
    import signal

    name = text.upper() or "SIGTERM"
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise InvalidArgument(f'unknown signal "{text}"') from None
