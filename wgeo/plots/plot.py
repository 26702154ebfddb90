"""A figure as a record calls for it: what it is called, how to draw it, what it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

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
