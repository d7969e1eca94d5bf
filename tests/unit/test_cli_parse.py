"""The options of shimrun, read as Go's flag library reads runc's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimd.cli.command import Option, flag, number, text, texts
from shimd.cli.parse import Parsed, UsageError, parse
from shimd.cli.usage import verb_help
from shimd.cli.verbs import exec as exec_verb

OPTIONS = (
    flag("detach", "", "d"),
    text("bundle", "", "b", default="."),
    number("preserve-fds", ""),
    texts("env", "", "e"),
)


def read(line: str, **how: int) -> Parsed:
    return parse(line.split(), OPTIONS, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["--bundle x", "-bundle x", "--bundle=x", "-bundle=x", "-b x", "--b x", "-b=x"])
def test_forms_of_a_value(form: str) -> None:
    parsed = read(f"{form} id")
    assert parsed.values["bundle"] == "x"
    assert (parsed.given, parsed.arguments) == ({"bundle"}, ["id"])


def test_defaults() -> None:
    parsed = read("id")
    assert parsed.values == {"detach": False, "bundle": ".", "preserve-fds": 0, "env": []}
    assert parsed.given == set()


def test_defaults_are_not_shared() -> None:
    read("-e a")
    assert read("").values["env"] == []


@pytest.mark.parametrize(
    ("value", "expected"), [("", True), ("=true", True), ("=1", True), ("=F", False), ("=0", False)]
)
def test_flags(value: str, *, expected: bool) -> None:
    assert read(f"-d{value} id").values["detach"] is expected


def test_a_flag_takes_no_value_after_it() -> None:
    assert read("-d false").arguments == ["false"]


def test_the_last_of_several_wins() -> None:
    assert read("-b x --bundle y -d -d=false").values["bundle"] == "y"


def test_repeated_ones_collect_and_keep_their_commas() -> None:
    assert read("-e a=1,2 --env=b= -env c").values["env"] == ["a=1,2", "b=", "c"]


def test_a_value_may_look_like_an_option() -> None:
    assert read("--bundle --detach id").values["bundle"] == "--detach"


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("-1", -1), ("0x10", 16)])
def test_numbers(value: str, expected: int) -> None:
    assert read(f"--preserve-fds {value}").values["preserve-fds"] == expected


@pytest.mark.parametrize("value", ["x", "", "1.5", "9223372036854775808", "1 2", "٣"])
def test_numbers_that_are_none(value: str) -> None:
    with pytest.raises(UsageError, match=r'invalid value ".*" for flag -preserve-fds'):
        parse(["--preserve-fds", value], OPTIONS)


def test_options_may_follow_arguments() -> None:
    parsed = read("id --detach more -b x")
    assert parsed.arguments == ["id", "more"]
    assert (parsed.values["detach"], parsed.values["bundle"]) == (True, "x")


def test_options_end_after_so_many_arguments() -> None:
    parsed = read("-d id ls -l --bundle x -d", stop_at=1)
    assert parsed.arguments == ["id", "ls", "-l", "--bundle", "x", "-d"]
    assert parsed.given == {"detach"}


@pytest.mark.parametrize(
    ("line", "arguments"),
    [("-- -d", ["-d"]), ("id -- -d --", ["id", "-d", "--"]), ("- -d", ["-"]), ("-9 -d", ["-9", "-d"]), ("", [])],
)
def test_what_is_no_option(line: str, arguments: list[str]) -> None:
    assert read(line).arguments == arguments


def test_the_verb_gets_all_that_follows_it() -> None:
    assert read("-d run -- -b x", to_verb=True).arguments == ["run", "--", "-b", "x"]


@pytest.mark.parametrize("word", ["-h", "--help", "-help", "--h"])
def test_help(word: str) -> None:
    assert read(f"id {word}").help


@pytest.mark.parametrize("line", ["--nosuch", "-x", "--nosuch=1", "-bundlex", "---bundle x"])
def test_unknown_options(line: str) -> None:
    with pytest.raises(UsageError, match="flag provided but not defined: -"):
        read(line)


def test_a_value_that_is_missing() -> None:
    with pytest.raises(UsageError, match="flag needs an argument: --bundle"):
        read("id --bundle")


@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["-d", "--bundle", "-e", "--preserve-fds", "--", "-"]))))
def test_any_words(words: list[str]) -> None:
    try:
        parsed = parse(words, OPTIONS)
    except UsageError:
        return
    assert len(parsed.arguments) <= len(words)


def test_help_has_every_option_but_hidden_ones() -> None:
    shown = verb_help("shimrun", "exec", exec_verb.COMMAND)
    for option in exec_verb.COMMAND.options:
        assert f"--{option.name}" in shown
    hidden = Option("flag", "secret", "", "", default=False, hidden=True)
    assert hidden.name not in shown
    assert "{program}" not in shown
