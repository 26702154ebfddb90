"""The project's language: words that are not used, in sources and pages."""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "wgeo").rglob("*.py"))
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.py"))

# What to write instead stands at the right.
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
    r"(?<!#)\b[Uu]nconstrained-feature": "unconstrained feature",
    r"\b[Uu]nconstrained features model": "unconstrained feature model",
}


@cache
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


SECTIONS = "Parameters|Attributes|Returns|Yields|Raises|Notes|Examples|References|See Also"


def merged(doc: str) -> list[str]:
    """Lines of a docstring into which an automatic re-wrap has drawn an entry, title or bullet."""
    found, section = [], ""
    lines = inspect.cleandoc(doc).splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        text = re.sub(r"``.*?``|:math:`.*?`|>>>.*", "code", line)
        entry = section and not line.startswith(" ")
        faults = (
            re.search(rf"\b({SECTIONS}) -{{3,}}", text),  # a title and its line
            re.search(r"[.;:,] [-*] [\w*`]", text),  # a bullet
            text.count(" : ") > bool(entry),  # an entry
            re.search(r"\w(Error|Warning) [A-Z]", text),  # an entry of Raises
            section in ("Parameters", "Attributes")
            and entry
            and line.strip("-")
            and not re.fullmatch(r"[*\w]+(, [*\w]+)*( : .+)?", line)
            and not re.fullmatch("-{3,}", after),
        )
        if any(faults):
            found.append(line)
        if re.fullmatch("-{3,}", after):
            section = line
    return found


@cache
def documented() -> list[tuple[str, ast.AST, str]]:
    """Every docstring of the package, with its place and its definition."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", node, doc)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, kinds) and (doc := ast.get_docstring(node))
    ]


def entries(doc: str, titles: str) -> set[str]:
    """Names that the sections `titles` of a docstring describe."""
    found: set[str] = set()
    for section in re.findall(rf"(?ms)^(?:{titles})\n-+\n(.*?)(?=^[\w ]+\n-{{3,}}|\Z)", doc):
        for head in re.findall(r"(?m)^([*\w][*\w, ]*?)(?: : .*)?$", section):
            found |= set(head.replace("*", "").split(", "))
    return found


def test_entries_and_bullets_of_docstrings_start_their_own_lines():
    assert not [f"{place}: {line}" for place, _, doc in documented() for line in merged(doc)]


@pytest.mark.parametrize(
    "doc",
    [
        "Sum.\n\nParameters\n----------\nx : int\n    First. y : int Second.",
        "Sum.\n\nParameters ---------- x : int First.",
        "Sum.\n\nAttributes\n----------\nx, y : int\n    Both.\nof each pair; or none.",
        "Sum:\n\n- the first. - the second.",
        "Sum.\n\nRaises\n------\nArgumentError\n    No x. DataError No y.",
    ],
)
def test_merged_docstrings_are_detected(doc):
    assert merged(doc)


def test_docstrings_describe_every_parameter_and_field():
    """Plots leave out `record` and `ax`, which their package describes once."""
    wrong = []
    for place, node, doc in documented():
        named = entries(doc, "Parameters|Attributes")
        if isinstance(node, ast.FunctionDef) and "\nParameters\n" in doc:
            a = node.args
            own = {p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p}
            own -= {"self", "cls"}
            extra = named - own
        elif isinstance(node, ast.ClassDef) and named:
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            own = {each.target.id for each in fields if "ClassVar" not in ast.dump(each.annotation)}
            own, extra = {name for name in own if name[0] != "_"}, set()
        else:
            continue
        if "/plots/" in place:
            own -= {"record", "ax", "source"}
        if own - named or extra:
            wrong.append(f"{place}: lacks {own - named}, has {extra}")
    assert not wrong
