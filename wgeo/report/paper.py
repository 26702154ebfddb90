"""The pages of a report as they are printed: one document, each figure once, no links to files."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINKS = re.compile(r"\(\{download\}`.*\)$", re.MULTILINE)  # below a figure, after its caption
_FIGURE = re.compile(r"^```\{figure\} (?P<file>\S+)\n:alt: .*\n\n(?P<said>.*)\n```$", re.MULTILINE)
_TOC = re.compile(r"^```\{toctree\}\n.*?^```$", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"^`{7}\{raw\} html\n.*?^`{7}$", re.MULTILINE | re.DOTALL)
_INTERVAL = re.compile(r"(\[[−–\d.,·⁻⁰¹²³⁴-⁹]+), (?=[−–\d.,·⁻⁰¹²³⁴-⁹]+\])")
_WORD = re.compile(r"(?:\\?[^\s|`$]){30,}")  # of escaped text: a backslash belongs to its mark
_BREAK = "\N{ZERO WIDTH SPACE}"  # the settings tell TeX to break lines there


def paper(made: Mapping[str, str]) -> dict[str, str]:
    """Pages by name, from those of the screen: ``index`` is the title, ``summary`` was the index.

    A figure that stands without a caption on one page and with one on another is left out of the
    first. Tables of settings have columns of a fixed width, in which hashes and paths are broken.
    """
    title, _, summary = made["index"].partition("\n")
    pages = {"summary": f"# Summary\n{summary}", **made}
    del pages["index"]
    pages = {name: _page(_shown(name, text)) for name, text in pages.items()}
    explained = {
        found["file"]
        for text in pages.values()
        for found in _FIGURE.finditer(text)
        if found["said"]
    }

    def once(found: re.Match[str]) -> str:
        return "" if found["file"] in explained and not found["said"] else found[0]

    toc = "\n".join(["```{toctree}", *pages, "```"])
    shown = {name: _FIGURE.sub(once, text) for name, text in pages.items()}
    return {"index": f"{title}\n\n{toc}\n", **shown}


def _shown(name: str, text: str) -> str:
    """Without what only a screen shows; commands may hold anything and are left as they are."""
    if name == "provenance":
        return text
    for cut in (_LINKS, _TOC, _HTML):
        text = cut.sub("", text)
    return text


def _page(text: str) -> str:
    text = _INTERVAL.sub("\\1,\N{NO-BREAK SPACE}", text)
    text = text.replace(":widths: auto", ":widths: 3 7")
    return "\n".join(
        _broken(line) if line.startswith("  - ") else line for line in text.split("\n")
    )


def _broken(line: str) -> str:
    """A cell's long words with places to break them: after marks, else every 16 letters."""

    def parts(word: re.Match[str]) -> str:
        pieces = re.findall(r"(?:\\?.){1,16}?(?:\\[/\\_.,:-]|(?=$))|(?:\\?.){1,16}", word[0])
        return _BREAK.join(pieces)

    return _WORD.sub(parts, line)
