from __future__ import annotations

import pytest

from shimd.errors import InvalidArgument
from shimd.rpc.identifiers import check_identifier


@pytest.mark.parametrize("name", ["a", "A9", "a.b-c_d", "0", "x" * 76, "k8s.io"])
def test_good(name: str) -> None:
    assert check_identifier(name, kind="container id") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "-a", "a-", "a..b", "a--b", "a b", "a\n", "ü", "x" * 77, "a\0", "a@b", "a:b"]
)
def test_bad(name: str) -> None:
    with pytest.raises(InvalidArgument, match="container id"):
        check_identifier(name, kind="container id")
