"""The help texts, laid out like runc's."""

from __future__ import annotations

from shimd.cli.command import Command, Option
from shimd.typed import Iterable


def program_help(program: str, version: str, root: Command, verbs: Iterable[tuple[str, Command]]) -> str:
    rows = [(name, command.usage) for name, command in verbs]
    rows.append(("help, h", "show a list of commands, or help for one"))
    return "\n".join(
        (
            f"NAME:\n   {program} - {root.usage.format(program=program)}\n",
            f"USAGE:\n   {program} [global options] command [command options] [arguments...]\n",
            f"VERSION:\n   {version}\n",
            f"COMMANDS:\n{_table(rows)}\n",
            f"GLOBAL OPTIONS:\n{_table(_option_rows(root.options))}\n",
        )
    )


def verb_help(program: str, name: str, command: Command) -> str:
    options = _option_rows(command.options)
    middle = " [command options]" if len(options) > 1 else ""
    parts = [
        f"NAME:\n   {program} {name} - {command.usage}\n",
        f"USAGE:\n   {program} {name}{middle} {command.arguments}".rstrip() + "\n",
    ]
    if command.description:
        parts.append(f"DESCRIPTION:\n   {command.description}\n")
    parts.append(f"OPTIONS:\n{_table(options)}\n")
    return "\n".join(parts).replace("{program}", program)


def _option_rows(options: tuple[Option, ...]) -> list[tuple[str, str]]:
    rows = [(_spelling(option), _meaning(option)) for option in options if not option.hidden]
    return [*rows, ("--help, -h", "show help")]


def _spelling(option: Option) -> str:
    value = {"flag": "", "number": " value", "text": " value", "texts": " value"}[option.kind]
    return ", ".join(f"{dashes}{name}{value}" for dashes, name in (("--", option.name), ("-", option.short)) if name)


def _meaning(option: Option) -> str:
    if option.kind in ("text", "number") and option.default:
        return f'{option.help} (default: "{option.default}")'
    if option.kind == "texts":
        return f"{option.help} (may be given several times)"
    return option.help


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"   {left:<{width}}  {right}" for left, right in rows)
