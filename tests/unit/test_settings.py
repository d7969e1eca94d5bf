from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidArgument
from shimd.settings import Settings, load_settings, parse_settings


def test_every_key_has_a_default() -> None:
    assert parse_settings({}, source="x") == Settings()
    assert Settings().socket == "/run/shimd/shimd.sock"
    assert Settings().runtime.workers >= 1


def test_values() -> None:
    document = {
        "socket": "/a",
        "log": {"format": "json"},
        "api": {"allowed_uids": [1000]},
        "runtime": {"drain_seconds": 3, "workers": 2},
    }
    settings = parse_settings(document, source="x")
    assert (settings.socket, settings.log.format, settings.log.level) == ("/a", "json", "info")
    assert settings.api.allowed_uids == (1000,)
    assert (settings.runtime.drain_seconds, settings.runtime.workers) == (3.0, 2)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"sockets": "/a"}, "unknown key sockets"),
        ({"log": {"levels": "info"}}, "unknown key log.levels"),
        ({"log": "info"}, "log must be a table"),
        ({"log": {"level": "loud"}}, "log.level must be one of debug, info, warning, error"),
        ({"socket": 1}, "socket must be of type str"),
        ({"socket": "relative"}, "socket must be an absolute path"),
        ({"events": {"keep": 0}}, "events.keep must be at least 1"),
        ({"events": {"keep": True}}, "events.keep must be of type int"),
        ({"api": {"allowed_uids": ["root"]}}, "api.allowed_uids must be a list of int"),
        ({"runtime": {"drain_seconds": float("nan")}}, "runtime.drain_seconds must be at least 0"),
    ],
)
def test_problems(document: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        parse_settings(document, source="x")


def test_all_problems_at_once() -> None:
    with pytest.raises(
        InvalidArgument, match="settings in x: unknown key a; socket must be of type str; unknown key b"
    ):
        parse_settings({"a": 1, "socket": 2, "b": 3}, source="x")


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert load_settings(str(path), required=False) == Settings()
    with pytest.raises(InvalidArgument, match="no such file"):
        load_settings(str(path), required=True)
    path.write_text('socket = "/b"\n[log]\nlevel = "debug"\n')
    assert load_settings(str(path), required=True).log.level == "debug"
    path.write_bytes(b"socket = \xff")
    with pytest.raises(InvalidArgument, match="reading settings"):
        load_settings(str(path), required=False)
