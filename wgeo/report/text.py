"""Markdown: escaped names, formatted numbers, tables, code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..plots.style import clean, number, short

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
DASH = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: Any, width: int | None = None) -> str:
    """Escape text as one line of Markdown that renders verbatim.

    CommonMark allows escaping all ASCII punctuation, so all of it is escaped: no markup, role,
    formula, table cell or HTML tag can begin.
    """
    return _escaped(clean(value) if width is None else short(value, width))


def _escaped(text: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", text)


def sentence(text: str) -> str:
    """Escape text like `plain`, but keep text in backquotes as code."""
    parts = re.split(r"`([^`]+)`", clean(text))
    return "".join(f"`{part}`" if k % 2 else _escaped(part) for k, part in enumerate(parts))


def code(text: str) -> str:
    """Return a block of code, fenced by more backticks than it contains."""
    lines = "\n".join(clean(line) if line.strip() else "" for line in text.splitlines())
    longest = max((len(run) for run in re.findall(r"`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{lines}\n{fence}"


def general(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; a dash if it is undefined."""
    x = number(value)
    if not np.isfinite(x):
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{x:,.0f}" if abs(x) >= 10**digits else f"{x:#.{digits}g}".rstrip(".")
    mantissa, e, exponent = text.partition("e")
    power = f"·10{str(int(exponent)).translate(_RAISED)}" if e else ""
    return mantissa.replace("-", "−") + power


def fixed(value: Any, decimals: int = 3) -> str:
    """Format a number with `decimals` decimals; a dash if it is undefined."""
    x = number(value)
    return f"{x:.{decimals}f}".replace("-", "−") if np.isfinite(x) else DASH


def percent(value: Any) -> str:
    """Format a fraction as a percentage."""
    x = number(value)
    return f"{100 * x:.1f} %" if np.isfinite(x) else DASH


def with_interval(value: Any, interval: Any, decimals: int = 2) -> str:
    """Format ``1.12 [1.08, 1.17]``, or the value alone if there is no interval."""
    ends = [number(end) for end in interval] if isinstance(interval, list | tuple) else []
    if len(ends) != 2 or not np.isfinite(ends).all():
        return fixed(value, decimals)
    return f"{fixed(value, decimals)} [{fixed(ends[0], decimals)}, {fixed(ends[1], decimals)}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table with text in the first column and numbers in the others, as Markdown."""
    lines = [header, [":--", *("--:" for _ in header[1:])], *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"```````{{table}} {caption}\n{body}\n```````"


def key_values(pairs: Iterable[tuple[str, str]], caption: str) -> str:
    """Return a table of names and values, both Markdown."""
    body = "\n".join(f"* - {name}\n  - {value}" for name, value in pairs)
    options = ":class: key-values\n:stub-columns: 1\n:widths: auto"
    return f"```````{{list-table}} {caption}\n{options}\n\n{body}\n```````"
