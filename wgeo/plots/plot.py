"""A figure as a record calls for it: what it is called, how to draw it, what it draws."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ..text import printable

Row = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A figure that a record calls for.

    Attributes
    ----------
    stem : str
        Name of its files, without the ending.
    title, caption : str
        What it is called, and how to read it.
    alt : str
        What it shows, for a reader who cannot see it.
    draw : callable
        () -> Figure.
    rows : callable
        () -> the numbers drawn, a mapping a row.
    """

    stem: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    rows: Callable[[], list[Row]]


def as_csv(rows: Iterable[Row]) -> bytes:
    """Rows as CSV, UTF-8, numbers in full precision, empty where a value is undefined.

    In names, what is not printable is shown as Python writes it: tables are looked at on terminals.
    """
    rows = [{_shown(key): _shown(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _shown(value: Any) -> Any:
    return printable(value, None) if isinstance(value, str) else value
