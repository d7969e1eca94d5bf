"""What annotations need of ``typing``, without loading it: with ``re`` and ``enum`` behind it that takes 5 ms, and a
command line starts for every call. Annotations are not evaluated (PEP 563), so any value will do for their names.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for True, whatever it says

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
else:
    Any = ClassVar = NoReturn = object

    class Protocol:
        """Base of what only describes."""

        __slots__ = ()
