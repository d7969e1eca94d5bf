"""The quick way to JSON says what the standard library's package says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimd import jsontext

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_both_ways(value: Any) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert jsontext.loads(json.dumps(value, indent=1)) == value
    for indent in ("  ", "\t"):
        assert jsontext.pretty(value, indent) == json.dumps(value, indent=indent, ensure_ascii=False)


@pytest.mark.parametrize("text", ["", " ", "{", "[1,]", "1 2", '{"a" 1}', "nul", '"\x01"', "\v1", "1\v", "01"])
def test_errors_are_those_of_the_package(text: str) -> None:
    with pytest.raises(ValueError) as expected:  # noqa: PT011 (compared below)
        json.loads(text)
    with pytest.raises(ValueError) as found:  # noqa: PT011
        jsontext.loads(text)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("text", ["{", "[1,]", '{"a" 1}', '"\\x01', '"\x01"', "1 2", "nul"])
def test_errors_are_the_same_where_the_package_is_not_loaded(text: str) -> None:
    code = "import sys; sys.path += sys.argv[1].split(':'); from shimd import jsontext; jsontext.loads(sys.argv[2])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, ":".join(sys.path), text],
                          capture_output=True, text=True, check=False)  # fmt: skip
    with pytest.raises(ValueError) as expected:  # noqa: PT011 (compared below)
        json.loads(text)
    assert done.stderr.splitlines()[-1] == f"json.decoder.JSONDecodeError: {expected.value}"


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_what_json_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a JSON number"):
        jsontext.loads(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        jsontext.dumps(float(text.strip('[]{}"a: ')))


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="bytes cannot be written"):
        jsontext.dumps({"a": b""})


def test_the_package_is_not_loaded() -> None:
    code = "import sys; from shimd import jsontext; jsontext.loads(jsontext.dumps([1])); print('json' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
