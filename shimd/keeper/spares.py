"""The one process that is made in advance, and when."""

from __future__ import annotations

import sys

from shimd.init.pending import Pending
from shimd.init.request import LaunchRequest
from shimd.init.spare import Spare
from shimd.linux.succeed import Successor
from shimd.typed import Callable

# Made once the keeper had nothing to do for so long: not while many launches follow on each other and the processors
# are busy with
# them, but before the next of those that come one by one.
IDLE_SECONDS = 0.002


class Spares:
    """Of one: with launches in quick succession a second one would be made at the cost of the launches."""

    def __init__(self, in_child: Callable[[], None]) -> None:
        self._in_child = in_child
        self._spare: Spare | None = None
        self._successor: Successor | None = None
        self._wanted = True
        try:
            self._successor = Successor()
        except OSError as e:
            self._give_up(e)

    def idle_timeout(self) -> float | None:
        """Seconds of idleness after which ``refill`` is to be called, None for never."""
        return IDLE_SECONDS if self._wanted else None

    def refill(self) -> None:
        if self._successor is None or self._spare is not None:
            return
        self._wanted = False
        try:
            self._spare = Spare(self._successor, self._in_child)
        except OSError as e:  # the next launch may have better luck
            print(f"keeper: make a spare process: {e}", file=sys.stderr, flush=True)

    def launch(self, request: LaunchRequest) -> Pending | None:
        """The launch by the spare; None when there is none."""
        spare, self._spare = self._spare, None
        self._wanted = self._successor is not None
        return None if spare is None else spare.hand_over(request)

    def close(self) -> None:
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _give_up(self, error: OSError) -> None:
        self._wanted = False
        print(f"keeper: no spare processes: {error}", file=sys.stderr, flush=True)
