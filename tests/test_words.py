"""The project's language: words that are not used, in sources and pages."""

from __future__ import annotations

import functools
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "wgeo").rglob("*.py"))
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.py"))

# What to write instead stands at the right; see CONTRIBUTING.md.
BANNED = {
    r"\b[Rr]ooms?\b": "package; space, memory",
    r"\b[Hh]ouses?\b": "architecture",
    r"\b[Dd]oors?\b": "entry point",
    r"(?<!there )\b(is|are) none\b": "say what it is, or what is missing",
    r"\bso many\b|\bas many as one likes\b": "the number",
    r"\bin words\b": "as text",
    r"\bamiss\b": "missing, wrong",
    r"\bbut for\b": "except for",
    r"\bfor ever\b": "forever; without end",
    r"\bis told\b|\bare told\b": "is reported",
    r"\breadout given\b": "with the network's own classifier",
    r"\bnameless\b|\bwithout a name\b": "anonymous",
}


@functools.cache
def prose(path: Path) -> list[tuple[int, str]]:
    """Lines of text: all lines of a page; the comments and strings of a module."""
    if path.suffix != ".py":
        return list(enumerate(path.read_text("utf-8").splitlines(), 1))
    with tokenize.open(path) as file:
        return [
            (token.start[0] + i, line)
            for token in tokenize.generate_tokens(file.readline)
            if token.type in (tokenize.COMMENT, tokenize.STRING) or "FSTRING_MIDDLE" in str(token)
            for i, line in enumerate(token.string.splitlines())
        ]


@pytest.mark.parametrize("pattern", BANNED)
def test_banned_words_are_not_used(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (*SOURCES, *PAGES, *GALLERY)
        for number, line in prose(path)
        if re.search(pattern, line)
    ]
    assert not found, f"say instead: {BANNED[pattern]}"
