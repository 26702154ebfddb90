"""Tables that fit the width of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..text import printable

_MAX_NAME_WIDTH = 24  # width reserved for a column of names; longer names may be wrapped


@dataclass(frozen=True)
class Column:
    """A column of a table; `names` states whether its cells are names, which may be wrapped.

    In a narrow terminal, columns with the highest `drop_order` are left out first, from right to
    left. Columns with 0 are never left out.
    """

    name: str
    cells: Sequence[str]
    drop_order: int = 0
    names: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(printable(text, None)) for text in (self.name, *self.cells))


def fit_to_width(
    columns: Sequence[Column], width: int, *, title: str | None = None, caption: str = ""
) -> RenderableType:
    """Return a table of the columns that fit.

    If the table is still too wide, return every row as several lines of text instead.
    """
    shown = list(columns)
    while _width(shown) > width and (highest := max(column.drop_order for column in shown)):
        shown.remove([column for column in shown if column.drop_order == highest][-1])
    left_out = [column.name for column in columns if column not in shown]
    if left_out:
        names = ", ".join(left_out).rstrip(".")
        caption += f" Not shown at a width of {width} characters: {names}."
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
    cells = (
        min(column.width, _MAX_NAME_WIDTH) if column.names else column.width for column in columns
    )
    return sum(cells) + 3 * len(columns) + 1


def _lines(columns: Sequence[Column]) -> list[Text]:
    """Return for every row a line with its names, and one line per number."""
    lines = []
    for row in range(len(columns[0].cells)):
        names = [c.cells[row] for c in columns if c.names and c.cells[row]]
        lines.append(Text(printable(", ".join(names), None), "bold"))
        lines += [
            Text(f"  {c.name} {c.cells[row]}") for c in columns if not c.names and c.cells[row]
        ]
    return lines
