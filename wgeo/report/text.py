"""Write Markdown: escaped names, formatted numbers, tables, code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from ..plots.files import as_csv
from ..plots.style import clean, number, short
from ..text import percent as in_percent

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
DASH = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: Any, width: int | None = None) -> str:
    """Escape text as one line of Markdown that renders verbatim.

    All ASCII punctuation gets a backslash, as CommonMark allows, so no markup or HTML can begin.
    """
    return escaped(clean(value) if width is None else short(value, width))


def escaped(text: str) -> str:
    """Escape printable text like `plain`, and keep the spaces at its ends."""
    return _PUNCTUATION.sub(r"\\\1", text)


def sentence(text: str) -> str:
    """Escape text like `plain`, but keep text in backquotes as code."""
    parts = re.split(r"`([^`]+)`", clean(text))
    return "".join(f"`{part}`" if k % 2 else escaped(part) for k, part in enumerate(parts))


def code(text: str) -> str:
    """Return a code block, fenced by more backticks than it contains."""
    lines = "\n".join(clean(line) if line.strip() else "" for line in text.splitlines())
    longest = max((len(run) for run in re.findall(r"`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{lines}\n{fence}"


def general(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, or more for large numbers and integers.

    Large numbers are rounded to integers, not further. An undefined number is a dash.
    """
    x = number(value)
    if not np.isfinite(x):
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    rounded = float(f"{x:.{digits}g}")  # in three digits, 999.7 is 1000, which has four
    text = f"{x:,.0f}" if abs(rounded) >= 10**digits else f"{x:z#.{digits}g}".rstrip(".")
    mantissa, e, exponent = text.partition("e")
    power = f"·10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if e else ""
    return mantissa.replace("-", "−") + power


def fixed(value: Any, decimals: int = 3) -> str:
    """Format a number with `decimals` decimals; an undefined number is a dash."""
    x = number(value)
    return f"{x:z.{decimals}f}".replace("-", "−") if np.isfinite(x) else DASH


def percent(value: Any) -> str:
    """Format a share as in sentences, such as ``99.96 %``; an undefined number is a dash."""
    x = number(value)
    return in_percent(x).replace("-", "−") if np.isfinite(x) else DASH


def with_interval(value: Any, interval: Any, decimals: int = 2) -> str:
    """Format ``1.12 [1.08, 1.17]``, or the value alone if there is no interval."""
    ends = [number(end) for end in interval] if isinstance(interval, list | tuple) else []
    if len(ends) != 2 or not np.isfinite(ends).all():
        return fixed(value, decimals)
    return f"{fixed(value, decimals)} [{fixed(ends[0], decimals)}, {fixed(ends[1], decimals)}]"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, text_columns: int = 1
) -> str:
    """Return a Markdown table with text in the first columns and numbers in the others.

    The cells of the first `text_columns` columns (one or two) may break over lines. On an HTML
    page, the table is followed by a link that downloads it as CSV.
    """
    rows = list(rows)
    alignment = [":--"] * text_columns + ["--:"] * (len(header) - text_columns)
    body = "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *rows))
    kind = f":class: words-{text_columns}\n\n" if text_columns > 1 else ""
    return (
        f"```````{{table}} {caption}\n{kind}{body}\n```````\n\n{_download(header, rows, caption)}"
    )


def _download(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a link, in raw HTML, that contains the table as CSV and so needs no file."""
    file = re.sub(r"[^a-z0-9]+", "-", _shown(caption).partition(".")[0].lower())[:50].strip("-")
    data = quote(as_csv(_columns(header, rows)), safe="")
    return raw_html(
        f'<p class="wgeo-csv"><a download="{file or "table"}.csv" '
        f'href="data:text/csv;charset=utf-8,{data}">Download this table as CSV</a></p>'
    )


def raw_html(html: str) -> str:
    """Return HTML as a block of Markdown; the PDF omits such blocks."""
    return f"```````{{raw}} html\n{html}\n```````"


_ROLE = re.compile(r"\{term\}`([^`<]+?)(?: <[^`]*>)?`")
_LINK = re.compile(r"<a [^>]*>|</a>")
_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\]")
_POWER = re.compile(r"·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)$")
_FROM_SUPERSCRIPTS = {superscript: digit for digit, superscript in _SUPERSCRIPTS.items()}


def term(words: str, entry: str | None = None) -> str:
    """Return `words` as a link to the glossary, to `entry` if the term differs from the words."""
    return f"{{term}}`{words}`" if entry is None else f"{{term}}`{words} <{entry}>`"


def _shown(markdown: str) -> str:
    """Return the text of a cell without roles, links and escapes."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", _LINK.sub("", _ROLE.sub(r"\1", markdown)))


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the rows of a table for CSV; an interval becomes two additional columns."""
    result: list[dict[str, str]] = [{} for _ in rows]
    for j, title in enumerate(map(_shown, header)):
        cells = [_shown(row[j]) for row in rows]
        title = title if title not in (result[0] if result else {}) else f"{title} {j}"
        ends = [_INTERVAL.fullmatch(cell) for cell in cells]
        for row, cell, parts in zip(result, cells, ends, strict=True):
            row[title] = _numeric(parts[1] if parts else cell)
            if any(ends):
                for k, side in ((2, "low"), (3, "high")):
                    row[f"{title} {side}"] = _numeric(parts[k]) if parts else ""
    return result


def _numeric(cell: str) -> str:
    """Return a formatted number as programs read it, "" for a dash, and other text unchanged."""
    if cell == DASH:
        return ""
    number = _POWER.sub(lambda match: "e" + match[1].translate(_FROM_SUPERSCRIPTS), cell)
    number = re.sub(r"(?<=\d),(?=\d{3})", "", number.replace("−", "-"))
    try:
        float(number)
    except ValueError:
        return cell
    return number


def key_values(pairs: Iterable[tuple[str, str]], caption: str) -> str:
    """Return a table of names and values, both in Markdown."""
    body = "\n".join(f"* - {name}\n  - {value}" for name, value in pairs)
    options = ":class: key-values\n:stub-columns: 1\n:widths: auto"
    return f"```````{{list-table}} {caption}\n{options}\n\n{body}\n```````"
