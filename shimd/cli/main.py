"""shimrun: the runtime without the daemon, with runc's command line. Not there yet; the name is kept for it."""

from __future__ import annotations

import sys


def main() -> int:
    print("shimrun: not yet: start shimd and use shimctl", file=sys.stderr)
    return 1
