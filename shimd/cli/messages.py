"""What shimrun says: to the file of ``--log`` in the format of ``--log-format``, otherwise to stderr.

Engines read the file: they show the user the last line whose level is "error", so a failure is exactly one such line,
and it comes last. A failure goes to stderr too when the log is a file.
"""

from __future__ import annotations

import os
import sys
import time

from shimd import jsontext
from shimd.errors import InvalidArgument


class Messages:
    def __init__(self, path: str, form: str, *, debug: bool) -> None:
        """Raises InvalidArgument for an unknown format, OSError for a file that cannot be opened."""
        if form not in ("", "text", "json"):
            raise InvalidArgument(f"invalid log-format: {form}")
        self._json = form == "json"
        self._fd = 2
        self._debug = debug
        if path:
            # Synchronous: whoever started us may look at the file as soon as we have ended.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_SYNC | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)

    @property
    def debugging(self) -> bool:
        return self._debug

    def debug(self, message: str) -> None:
        if self._debug:
            frame = sys._getframe(1)
            code = frame.f_code
            self._line(
                "debug", message, func=code.co_name, file=f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"
            )

    def warn(self, message: str) -> None:
        self._line("warning", message)

    def program_error(self, message: str) -> None:
        """As ``error``; on a terminal it looks like what the program itself would have said."""
        if self._fd == 2:
            _write(2, f"{message}\n")
        else:
            self.error(message)

    def error(self, message: str) -> None:
        """The last thing that is said."""
        self._line("error", message)
        if self._fd != 2:
            _write(2, f"{message}\n")

    def _line(self, level: str, message: str, **more: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            fields = {"level": level, "msg": message, "time": now, **more}
            line = jsontext.dumps(fields)
        else:
            words = [f'time="{now}"', f"level={level}", f"msg={_quoted(message)}"]
            line = " ".join(words + [f"{key}={_quoted(value)}" for key, value in more.items()])
        _write(self._fd, line + "\n")


def _quoted(value: str) -> str:
    """In quotes where a reader of key=value lines needs them."""
    if value and all(character.isalnum() or character in "-._/@^+" for character in value) and value.isascii():
        return value
    return jsontext.quoted(value)


def _write(fd: int, line: str) -> None:
    try:
        os.write(fd, line.encode("utf-8", "replace"))
    except OSError:  # nobody to tell
        return
