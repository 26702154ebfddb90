"""The pages of a report for print: one document without links to files."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINKS = re.compile(r"\(\{download\}`.*\)$", re.MULTILINE)  # after the caption of a figure
_TOC = re.compile(r"^```\{toctree\}\n.*?^```$", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"^`{7}\{raw\} html\n.*?^`{7}$", re.MULTILINE | re.DOTALL)
_INTERVAL = re.compile(r"(\[[−–\d.,·⁻⁰¹²³⁴-⁹]+), (?=[−–\d.,·⁻⁰¹²³⁴-⁹]+\])")
_WORD = re.compile(r"(?:\\?[^\s|`$]){30,}")  # escaped: a backslash belongs to the next character
_BREAK = "\N{ZERO WIDTH SPACE}"  # conf.py.in lets TeX break lines at it


def for_print(screen: Mapping[str, str]) -> dict[str, str]:
    """Convert pages, by name, from screen to print; the page ``index`` becomes ``summary``.

    Tables of settings get columns of fixed width, in which hashes and paths are broken over lines.
    """
    title, _, summary = screen["index"].partition("\n")
    pages = {"summary": f"# Summary\n{summary}", **screen}
    del pages["index"]
    toc = "\n".join(["```{toctree}", *pages, "```"])
    printed = {name: _printed(name, text) for name, text in pages.items()}
    return {"index": f"{title}\n\n{toc}\n", **printed}


def _printed(name: str, text: str) -> str:
    if name != "provenance":  # the commands on it may contain any text
        for pattern in (_LINKS, _TOC, _HTML):
            text = pattern.sub("", text)
    text = _INTERVAL.sub("\\1,\N{NO-BREAK SPACE}", text)
    lines = text.replace(":widths: auto", ":widths: 3 7").split("\n")
    return "\n".join(_broken(line) if line.startswith("  - ") else line for line in lines)


def _broken(line: str) -> str:
    """Allow line breaks in a cell's long words: after punctuation, or else every 16 characters."""

    def parts(word: re.Match[str]) -> str:
        pieces = re.findall(r"(?:\\?.){1,16}?(?:\\[/\\_.,:-]|(?=$))|(?:\\?.){1,16}", word[0])
        return _BREAK.join(pieces)

    return _WORD.sub(parts, line)
