"""Tables no wider than the terminal: columns are left out or rows stacked; no number is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..text import printable

_NAME = 24  # characters that a column of names keeps; longer names are folded


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    cells : sequence of str
    priority : int
        If the terminal is narrow, columns with the highest number are left out first, from the
        right; those with 0 stay.
    names : bool
        Whether the cells are names, left-aligned and folded, rather than numbers.
    """

    name: str
    cells: Sequence[str]
    priority: int = 0
    names: bool = False

    @property
    def width(self) -> int:
        """Characters of the longest cell."""
        return max(cell_len(printable(text, None)) for text in (self.name, *self.cells))


def fitted(
    columns: Sequence[Column], width: int, *, title: str | None = None, caption: str = ""
) -> RenderableType:
    """Return a table of the columns that fit; if those of priority 0 do not, each row as lines."""
    shown = list(columns)
    while _width(shown) > width and (least := max(column.priority for column in shown)):
        shown.remove([column for column in shown if column.priority == least][-1])
    left_out = [column.name for column in columns if column not in shown]
    if left_out:
        caption += f" Left out at a width of {width} columns: {', '.join(left_out).rstrip('.')}."
    if _width(shown) > width:
        return Group(*([title] if title else []), *_lines(shown), Text(caption.strip(), "dim"))
    table = Table(
        title=title, title_justify="left", caption=caption.strip(), caption_justify="left"
    )
    for column in shown:
        table.add_column(
            column.name,
            justify="left" if column.names else "right",
            no_wrap=not column.names,
            overflow="fold",
        )
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def _width(columns: Sequence[Column]) -> int:
    cells = (min(column.width, _NAME) if column.names else column.width for column in columns)
    return sum(cells) + 3 * len(columns) + 1


def _lines(columns: Sequence[Column]) -> list[Text]:
    """Return a heading for each row, of its names, and a line for each of its numbers."""
    lines = []
    for row in range(len(columns[0].cells)):
        names = [c.cells[row] for c in columns if c.names and c.cells[row]]
        lines.append(Text(printable(", ".join(names), None), "bold"))
        lines += [
            Text(f"  {c.name} {c.cells[row]}") for c in columns if not c.names and c.cells[row]
        ]
    return lines
