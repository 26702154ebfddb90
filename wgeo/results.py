"""Base classes of results: plain values, a table, a short text, and HTML for notebooks."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .errors import DependencyError
from .text import printable

if TYPE_CHECKING:
    import pandas as pd

_LINES = 10  # maximum number of lines of a text
_WIDTH = 88  # maximum number of characters of a line
_HTML_ROWS = 40  # maximum number of rows of a table in a notebook


class Displayed:
    """An object shown as a description and a table: at most ten lines of text, or HTML."""

    def _description(self) -> str:
        """Return a short description of the object; by default its numbers and strings."""
        values = [
            f"{f.name}={_cell(getattr(self, f.name))}"
            for f in fields(self)  # type: ignore[arg-type]
            if f.repr and isinstance(getattr(self, f.name), str | int | float | np.generic)
        ]
        return ", ".join(values)

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the table; none by default."""
        return ()

    def _curve(self) -> tuple[str, Sequence[float | None]]:
        """Return a title and the values of a small curve for notebooks; none by default."""
        return "", ()

    def _pictures(self) -> Sequence[str]:
        """Return small figures for notebooks, as HTML; by default a figure of `_curve`."""
        curve = _curve(*self._curve())
        return [curve] if curve else []

    def _sentences(self) -> Sequence[str]:
        """Return sentences that are shown in notebooks only; none by default."""
        return ()

    def __repr__(self) -> str:
        name = type(self).__name__
        description = f"{name}: {printable(self._description(), None)}"
        text = textwrap.wrap(description, _WIDTH, max_lines=_LINES, placeholder=" ...")
        table = _text_table(self._rows())
        remaining = _LINES - len(text)
        if len(table) > remaining:
            count = len(table) - 1  # without the header
            table = table[: max(0, remaining - 1)]
            table += [f"... {count} rows in all"] if remaining else []
        return "\n".join([*text, *table])

    def _repr_html_(self) -> str:
        name = html.escape(type(self).__name__)
        parts = [f"<p><b>{name}</b>: {_escaped(self._description())}</p>"]
        sentences = "".join(f"<li>{_escaped(each)}</li>" for each in self._sentences())
        parts += [f"<ul>{sentences}</ul>"] if sentences else []
        parts += self._pictures()
        parts += _html_table(self._rows())
        return "<div>" + "".join(parts) + "</div>"


class Result(Displayed):
    """A dataclass of numbers, which can be converted to plain values or a table.

    The plain values are the fields, except arrays and fields declared with ``repr=False``. A class
    can add properties and arrays (`_included`) and omit fields (`_omitted`).
    """

    _included: ClassVar[tuple[str, ...]] = ()
    _omitted: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, as lists, mappings, numbers and text; arrays are left out.

        Examples
        --------
        >>> import wgeo
        >>> values = wgeo.wasserstein([0.0, 1.0], [4.0, 2.0]).to_dict()
        >>> values["cost"], values["status"], "coupling" in values
        (6.5, 'certified', False)
        """
        shown = [
            f.name
            for f in fields(self)  # type: ignore[arg-type]
            if f.repr and not _has_arrays(getattr(self, f.name))
        ]
        names = dict.fromkeys((*shown, *self._included))
        return {name: plain(getattr(self, name)) for name in names if name not in self._omitted}

    def _record(self) -> dict[str, Any]:
        """Return the plain values under the keys that they have in the record of an analysis."""
        return self.to_dict()

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas table: one row of the plain values, unless the class defines other rows.

        Raises
        ------
        DependencyError
            pandas is not installed.

        Examples
        --------
        >>> import wgeo
        >>> table = wgeo.wasserstein([0.0, 1.0], [4.0, 2.0]).to_pandas()
        >>> table["cost"].tolist()
        [6.5]
        """
        return as_table(self._table())

    def _table(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of `to_pandas`; by default a single row of the plain values."""
        return [self.to_dict()]


def plain(value: Any) -> Any:
    """Convert a value to plain types: dataclasses to mappings, arrays to lists, enums to text."""
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Enum) else value


def defined(value: float) -> float | None:
    """Return a number, or None if it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None


def as_table(rows: Any) -> pd.DataFrame:
    """Return a list of rows, or a mapping of columns, as a pandas table."""
    try:
        import pandas as pd
    except ImportError as error:
        raise DependencyError(
            "A table needs pandas: run `pip install pandas`, or use to_dict()."
        ) from error
    return pd.DataFrame(rows)


def _has_arrays(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_arrays, value))
    return isinstance(value, np.ndarray)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return printable(str(value), 40)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the columns that have a value in some row, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) is not None for row in rows)]


def _text_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a header and aligned rows, with as many of the first columns as fit the width."""
    columns: list[list[str]] = []
    width = 0
    for name in _columns(rows):
        cells = [name, *(_cell(row.get(name)) for row in rows)]
        size = max(map(len, cells)) + 2
        if columns and width + size > _WIDTH:
            break
        number = all(isinstance(row.get(name), int | float | np.number | None) for row in rows)
        columns.append([c.rjust(size) if number else f"  {c.ljust(size - 2)}" for c in cells])
        width += size
    return ["".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _html_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = _columns(rows)
    if not columns:
        return []

    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [line("td", (_cell(row.get(name)) for name in columns)) for row in rows[:_HTML_ROWS]]
    more = len(rows) - _HTML_ROWS
    return [
        '<div style="overflow-x:auto"><table>',
        f"<thead>{line('th', columns)}</thead>",
        f"<tbody>{''.join(body)}</tbody></table></div>",
        *([f"<p>and {more} more rows</p>"] if more > 0 else []),
    ]


def _escaped(text: str) -> str:
    return html.escape(printable(text, None))


def _curve(title: str, values: Sequence[float | None]) -> str:
    """Return a small curve as SVG, labeled with its first and last defined value."""
    points = [(k, float(v)) for k, v in enumerate(values) if v is not None and np.isfinite(v)]
    if len(points) < 2:
        return ""
    low, high = (f(v for _, v in points) for f in (min, max))
    scale = high - low or 1.0
    across, down = 240 / max(1, len(values) - 1), 40
    path = " ".join(f"{5 + across * k:.1f},{5 + down * (high - v) / scale:.1f}" for k, v in points)
    label = f"{title}: {_cell(points[0][1])} to {_cell(points[-1][1])}"
    return (
        f'<figure style="margin:0"><svg width="250" height="50" role="img" '
        f'aria-label="{_escaped(label)}"><polyline points="{path}" fill="none" '
        f'stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<figcaption>{_escaped(label)}</figcaption></figure>"
    )
