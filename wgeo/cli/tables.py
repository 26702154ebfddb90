"""Print analyses, series and solutions of models as tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..analysis.verdict.opening import few_samples_note, has_corrected
from ..checkpoints.provenance import describe_reading
from ..plots.models import DEEP, TERMS
from ..plots.series import series_rows
from ..runtime.terminal import Terminal
from ..storage.record import Block, Layer, Record
from ..text import UNDEFINED, printable
from .root import with_flags

if TYPE_CHECKING:
    from ..analysis import Analysis, Series

_MAX_NAME_WIDTH = 24  # width reserved for a column of names; longer names may be wrapped
Row = Mapping[str, Any]


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


def _cell(value: float | None, form: str = "{:.4g}") -> str:
    return UNDEFINED if value is None else form.format(value)


def _in_parentheses(text: str) -> str:
    return f" ({text})" if text else ""


def _in_parentheses_unless(certain: Any, text: str) -> str:
    return text if certain else f"({text})"


# --- analyses ---------------------------------------------------------------------------------

_ARCH_SOURCES = {  # how the architecture was determined, if the user did not name it
    "tensors": "recognized by its tensors",
    "config": "from its config.json",
    "file": "as the file states",
}
_MARKS = {"warning": "!", "undecided": "?"}


def print_analysis(analysis: Analysis) -> None:
    """Print a header, a table with one row per layer, and one line per sentence of the verdict."""
    record = Record.of(analysis.record)
    console = Terminal(110)
    for line in _header(record):
        console.print(line, soft_wrap=True)
    into = {block.target: block for block in record.blocks}
    columns = [
        Column(
            name,
            [show(layer, into.get(layer.name)) for layer in record.layers],
            drop_order,
            names=name == "layer",
        )
        for name, show, drop_order in _COLUMNS
        if name != _CORRECTED or has_corrected(record)
    ]
    caption = _CAPTION + few_samples_note(record)
    console.print(fit_to_width(columns, console.width, caption=caption))
    for sentence in record.verdict:
        mark = _MARKS.get(sentence.strength or "", "-")
        console.print(f"{mark} {with_flags(sentence.words)}", soft_wrap=not console.is_terminal)


def _header(record: Record) -> list[str]:
    """Return lines on the network, the images, and how far the results can be trusted."""
    origin, trust = record.provenance, record.trust
    split = _in_parentheses(origin.split or "")
    net = (origin.arch or "features") + _in_parentheses(
        _ARCH_SOURCES.get(origin.arch_from or "", "")
    )
    lines = [
        f"{net} on {origin.data or 'arrays'}{split}, "
        f"{origin.samples or 0:,} samples, {origin.pool or 'given'} features"
    ]
    parts = []
    if normalization := trust.normalization:
        parts.append(f"normalization {normalization.name}, {normalization.origin}")
    if record.accuracy is not None:
        stated = trust.claimed_accuracy.value
        context = [f"guessing {trust.chance:.3f}"] if trust.chance is not None else []
        context += [f"the file states {stated:.3f}"] if stated is not None else []
        parts.append(f"accuracy {record.accuracy:.3f}" + _in_parentheses(", ".join(context)))
    if how := describe_reading(origin.report):
        lines.append(f"weights: {how}")
    return [*lines, "; ".join(parts)] if parts else lines


Show = Callable[[Layer, Block | None], str]


def _block(key: str, form: str = "{:.4g}") -> Show:
    return lambda _, block: "" if block is None else _cell(block.measure(key), form)


def _collapse(key: str, form: str = "{:.3g}") -> Show:
    return lambda layer, _: _cell(layer.collapse.measure(key), form)


def _interval(_: Layer, block: Block | None) -> str:
    if block is None:
        return ""
    if block.status == "certified":
        return "certified"
    return f"[{_cell(block.lower)}, {_cell(block.upper)}]"


def _correlation(_: Layer, block: Block | None) -> str:
    if block is None:
        return ""
    return _in_parentheses_unless(block.power, _cell(block.measure("corr_score"), "{:z.4f}"))


_CORRECTED = "NC1 corrected"
# Name, function that returns a cell, and `drop_order`.
_COLUMNS: tuple[tuple[str, Show, int], ...] = (
    ("layer", lambda layer, _: layer.name, 0),
    ("W2", _block("distance"), 0),
    ("interval", _interval, 2),
    ("corr.", _correlation, 0),
    ("OT centered", _block("ot_score_centred", "{:z.4f}"), 3),
    ("asymmetry", _block("asymmetry", "{:.2f}"), 1),
    ("NC1", _collapse("nc1"), 0),
    (_CORRECTED, _collapse("nc1_corrected"), 0),
    ("NCC acc.", _collapse("ncc_accuracy", "{:.3f}"), 1),
)
_CAPTION = (
    "corr.: correlation score, 1 for an optimal map. A score in parentheses is not evidence, "
    "because null maps score about as high. NCC acc.: accuracy of the nearest class mean."
)

# --- series -----------------------------------------------------------------------------------


def print_series(series: Series) -> None:
    """Print a series as a table with one row per analysis and segment."""
    by_epoch = series.record["axis"] == "epoch"
    rows = series_rows(series)
    repeated = [k > 0 and row["name"] == rows[k - 1]["name"] for k, row in enumerate(rows)]

    def column(
        name: str, show: Callable[[Row], str], drop_order: int = 0, *, once: bool = False
    ) -> Column:
        """Return a column; with `once`, only the first row of each analysis has a cell."""
        cells = [
            "" if once and again else show(row) for row, again in zip(rows, repeated, strict=True)
        ]
        return Column(name, cells, drop_order, names=name in ("name", "segment"))

    def value(key: str, form: str = "{:.2f}") -> Callable[[Row], str]:
        return lambda row: _cell(row[key], form)

    runs = ", ".join(str(k) for k in sorted({row["runs"] for row in rows if row["runs"]}))
    over_runs = []
    caption = (
        "sqrt B: the length ratio that orthogonal steps of the same sizes would have. corr. is in "
        "parentheses if it is not clearly above that of null maps."
    )
    if runs and not by_epoch:
        over_runs = [column(f"over k = {runs}", value("length_over_runs_centred"), 2)]
        caption = (
            "over k: the centered length ratio after the blocks are grouped into k consecutive "
            "groups, each measured as one step, so that networks of different depths can be "
            f"compared. {caption}"
        )
    first = "epoch" if by_epoch else "name"
    columns = [
        column(first, lambda row: str(row[first]), once=True),
        column("segment", lambda row: row["segment"]),
        column("accuracy", value("accuracy", "{:.3f}"), 1, once=True),
        column("length ratio", _length_ratio),
        column("centered", value("length_ratio_centred"), 2),
        *over_runs,
        column("sqrt B", value("sqrt_moving_blocks"), 3),
        column(
            "corr.",
            lambda row: _in_parentheses_unless(row["power"], _cell(row["corr_score"], "{:z.4f}")),
        ),
        column("NC1, last", value("nc1", "{:.4g}"), once=True),
        column("tau of NC1", value("tau", "{:+z.2f}"), 3, once=True),
    ]
    terminal = Terminal(130)
    terminal.print(fit_to_width(columns, terminal.width, title="Side by side", caption=caption))


def _length_ratio(row: Row) -> str:
    low, high = row["length_ratio_low"], row["length_ratio_high"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{_cell(row['length_ratio'], '{:.2f}')}{interval}"


# --- solutions of unconstrained feature models ------------------------------------------------

_METRICS = {
    "nc1": "NC1",
    "nc2_equinorm": "norms",
    "nc2_equiangle": "angles",
    "nc2_etf": "to ETF",
    "nc3": "NC3",
    "ncc_accuracy": "NCC acc.",
}


def print_solution(record: Mapping[str, Any]) -> None:
    """Print the objective, its lower bound, a table of collapse by layer, and the certificate."""
    console = Terminal(100)
    console.print(_headline(record))
    console.print(_objective(record))
    title = "Collapse: 0 if complete (accuracy: 1)"
    console.print(fit_to_width(_by_layer(record["curve"]), console.width, title=title))
    for line in _certificate(record):
        console.print(line, soft_wrap=not console.is_terminal)


def _headline(record: Mapping[str, Any]) -> Text:
    counts = record["counts"]
    sizes = f"{counts[0]} samples each" if len(set(counts)) == 1 else f"{sum(counts)} samples"
    method = record["settings"].get("method", "descent from the ridge solution and random starts")
    return Text.assemble(
        (record["model"], "bold"),
        f": {record['classes']} classes, {sizes}, {record['dim']} features; {method}, ",
        f"{record['seconds']:.2f} s",
    )


def _objective(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("objective", f"{record['objective']:.12g}", style="bold")
    for name, value in record["terms"].items():
        if name == "fit" or value:
            table.add_row(f"  {TERMS.get(name, name)}", f"{value:.6g}")
    bound = record["certificate"]["lower_bound"]
    if bound is not None:
        table.add_row("lower bound", f"{bound:.12g}")
    if (collapsed := record["settings"].get("dnc")) is not None:
        table.add_row("deep neural collapse", f"{collapsed:.12g}")
    values = record["values"]
    if len(values) > 1:
        table.add_row(f"best of {len(values)} starts", f"{min(values):.9g}")
        table.add_row("worst", f"{max(values):.9g}")
    return table


def _by_layer(curve: Sequence[Mapping[str, Any]]) -> list[Column]:
    weights = "deep" in curve[0]  # one row per weight matrix; MUFM has one per layer of features
    names = [f"W{k + 1}" if weights else str(k) for k in range(len(curve))]
    columns = [Column("features into" if weights else "layer", names, names=True)]
    for key, name in _METRICS.items():
        values = [layer["collapse"].get(key) for layer in curve]
        if any(value is not None for value in values):
            columns.append(Column(name, [*map(_or_dash, values)], drop_order=int(len(columns) > 2)))
    if weights and len(curve) > 1:
        for key, name in DEEP.items():
            columns.append(Column(name, [_or_dash(layer["deep"][key]) for layer in curve]))
    return columns


def _or_dash(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"


def _certificate(record: Mapping[str, Any]) -> list[str]:
    certificate = record["certificate"]
    lines = [f"Certificate: {certificate['verdict']}. {certificate['evidence']}"]
    lines[0] += f" Gradient norm {certificate['gradient_norm']:.1e}."
    if (landscape := record["landscape"]) is not None:
        eigenvalues = ", ".join(f"{value:.6g}" for value in landscape["eigenvalues"])
        if landscape["evidence"] != certificate["evidence"]:
            lines.append(f"Landscape: {landscape['verdict']}. {landscape['evidence']}")
        lines.append(f"Smallest Hessian eigenvalues: {eigenvalues}.")
    return lines
