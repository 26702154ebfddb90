"""A figure before it is drawn: its texts, the function that draws it, and the plotted numbers."""

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
    """A figure of a record, before it is drawn.

    Attributes
    ----------
    stem : str
        Name of its files, without the extension.
    title, caption, alt : str
        Title, an explanation of how to read the figure, and a text for those who cannot see it.
    draw : callable
        Returns the matplotlib figure.
    rows : callable
        Returns the plotted numbers, one mapping per row.
    """

    stem: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    rows: Callable[[], list[Row]]


def as_csv(rows: Iterable[Row]) -> bytes:
    """Return rows as CSV in UTF-8, with numbers in full precision; undefined values are empty.

    Unprintable characters are escaped as in Python, because a terminal would interpret them.
    """
    rows = [{_escaped(key): _escaped(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _escaped(value: Any) -> Any:
    return printable(value, None) if isinstance(value, str) else value
