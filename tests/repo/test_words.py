"""The project speaks of itself alone: of no one's folders, and not of how it came about."""

from __future__ import annotations

import re

from tests.repo.tree import ROOT, files

# Written so that no pattern finds itself.
PATTERNS = [
    r"(?<![a-z])/(?:work|farm)/",
    r"\.\./[s]hared",
    r"\.[l]ibrary",
    r"[s]ubagent",
    r"\b[a]ssistant",
    r"\b[i]ssue \d",
    r"\b[C]laude\b",
    r"\b[C]OMPASS\b",
    r"\b[D]EVELOPERS\.md",
    r"\b[T]ODO\b|\b[F]IXME\b|\b[X]XX\b",
]


def test_no_words_that_do_not_belong() -> None:
    pattern = re.compile("|".join(PATTERNS))
    found = []
    for name in files():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{name}:{number}: {match.group()!r}")
    assert not found, "these do not belong here:\n  " + "\n  ".join(found)
