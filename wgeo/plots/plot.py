"""Descriptions of figures: title, caption, drawing function and plotted numbers."""

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
    """The description of a figure of a record.

    Attributes
    ----------
    stem : str
        Name of its files, without the extension.
    title, caption : str
        Title of the figure, and an explanation of how to read it.
    alt : str
        Alternative text for readers who cannot see the figure.
    draw : callable
        Takes no arguments and returns the matplotlib figure.
    rows : callable
        Takes no arguments and returns the plotted numbers, one mapping per row.
    """

    stem: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    rows: Callable[[], list[Row]]


def as_csv(rows: Iterable[Row]) -> bytes:
    """Return rows as CSV in UTF-8, with numbers in full precision; undefined values are empty.

    Unprintable characters in names are escaped as in Python, because terminals interpret them.
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
