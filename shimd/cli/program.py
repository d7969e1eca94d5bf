"""What shimrun does: the command line is read, one verb runs, and whatever goes wrong becomes one line and an exit
code.

No module is imported here that one of the verbs does not need: see ``shimd.cli``.
"""

from __future__ import annotations

import os
import sys

from shimd.cli.command import Call, Command
from shimd.cli.main import VERBS
from shimd.cli.messages import Messages
from shimd.cli.parse import UsageError, parse
from shimd.cli.settings import PROGRAM, Settings
from shimd.contexts import suppress
from shimd.errors import ShimdError, os_error_text
from shimd.runtime.direct import DirectLauncher
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from shimd.runtime.executed import Executed

FAILED = 1


class Program:
    def __init__(self, name: str, spare: Executed | None) -> None:
        """``spare`` is for what may be launched."""
        self.name = name
        self.launcher = DirectLauncher(spare)
        self.messages = Messages("", "text", debug=False)
        self.verb = ""
        self.command = PROGRAM
        sys.excepthook = self.report_bug

    def main(self, words: list[str]) -> int:
        try:
            return self.run(words)
        except UsageError as error:
            reason = f": {error.reason}" if error.reason else "."
            with suppress(OSError):  # nobody reads it
                _print(f"Incorrect Usage{reason}\n\n{self.help()}")
            self.messages.error(str(error))
            return FAILED
        except (ShimdError, OSError) as error:
            self.fail(error)
        except KeyboardInterrupt:
            return 130
        finally:
            self.launcher.close()
        return self.command.code

    def run(self, words: list[str]) -> int:
        parsed = parse(words, PROGRAM.options, to_verb=True)
        if parsed.values["version"]:
            return self.print_version()
        if parsed.help or not parsed.arguments or parsed.arguments[0] in ("help", "h"):
            return self.print_help(parsed.arguments[1:])
        verb, *rest = parsed.arguments
        self.command = self.load(verb)
        self.verb = verb
        own = parse(rest, self.command.options, stop_at=self.command.stop_at)
        if own.help:
            return self.print_help([])
        settings = Settings(self.name, parsed)
        self.messages = Messages(settings.log, settings.log_format, debug=settings.debug)
        self.check_arguments(own.arguments)
        code: int = _module(verb).run(Call(settings, self.messages, own, self.launcher))
        return code

    def load(self, verb: str) -> Command:
        if verb not in VERBS:
            raise ShimdError(f"No help topic for '{verb}'")
        command = _module(verb).COMMAND
        assert isinstance(command, Command)
        return command

    def check_arguments(self, arguments: list[str]) -> None:
        least, most = self.command.least, self.command.most
        count = len(arguments)
        if least <= count and (count <= most or most < 0):
            return
        if least == most:
            wanted = f"exactly {least}"
        elif count < least:
            wanted = f"a minimum of {least}"
        else:
            wanted = f"a maximum of {most}"
        raise UsageError(f'{self.name}: "{self.verb}" requires {wanted} argument(s)')

    # ---- what is said ----------------------------------------------------------------------------------------------

    def fail(self, error: ShimdError | OSError) -> None:
        for note in getattr(error, "__notes__", ()):
            self.messages.warn(note)
        failure = getattr(error, "failure", None)  # of InitFailed in shimd.runtime.dialogue, which may not be loaded
        if failure is not None and failure.op == "Execute" and self.verb in ("run", "exec"):
            self.messages.program_error(str(failure))
            return
        text = os_error_text(error) if isinstance(error, OSError) else str(error)
        if failure is not None:
            text = self.text_of(failure, getattr(error, "where", ""))
        hint = getattr(error, "hint", "")
        prefix = f"{self.name} {self.command.prefix}: " if self.command.prefix else ""
        self.messages.error(f"{prefix}{text}{f' ({hint})' if hint else ''}")

    def text_of(self, failure: object, where: str) -> str:
        """What a new process could not do is told in runc's frame, where its users look for what is in it."""
        stage = "" if self.verb == "exec" else "error during container init: "
        return f"unable to start container process: {stage}{failure} ({where})"

    def report_bug(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An exception that is none of ours: a bug, which is one line too. Where it happened is in the debug log."""
        if self.messages.debugging:
            import traceback

            self.messages.debug("".join(traceback.format_exception(kind, error, trace)))
        self.messages.error(f"internal error, please report it: {kind.__name__}: {error}")
        os._exit(self.command.code)

    def help(self) -> str:
        from shimd.cli.usage import program_help, verb_help
        from shimd.cli.version import version

        if self.verb:
            return verb_help(self.name, self.verb, self.command)
        verbs = [(verb, self.load(verb)) for verb in VERBS]
        return program_help(self.name, version(), PROGRAM, verbs)

    def print_help(self, topics: list[str]) -> int:
        if topics:
            self.command = self.load(topics[0])
            self.verb = topics[0]
        _print(self.help())
        return 0

    def print_version(self) -> int:
        from shimd.cli.version import version_text

        _print(version_text(self.name))
        return 0


def _module(verb: str) -> Any:
    return __import__(f"shimd.cli.verbs.{verb}", fromlist=("run",))


def _print(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]
