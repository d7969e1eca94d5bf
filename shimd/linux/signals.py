"""The standard library's ``signal`` without the enumerations around it, which take a millisecond to load."""

from __future__ import annotations

from shimd.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import signal as signal
else:
    import _signal as signal

__all__ = ["signal"]
