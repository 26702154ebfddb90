"""Print analyses and series as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..analysis import Analysis, Series
from ..analysis.verdict.opening import few_samples_note, has_corrected
from ..checkpoints.provenance import describe_reading
from ..plots.series import series_rows
from ..runtime.terminal import Terminal
from ..storage.record import Block, Layer, Record
from .widths import Column, fit_to_width

_PIPED = 110  # width in characters if the output is not a terminal
_ARCH_SOURCES = {  # how the architecture was determined, if the user did not name it
    "tensors": "recognized by its tensors",
    "config": "from its config.json",
    "file": "as the file states",
}
_MARKS = {"warning": "!", "undecided": "?"}
Row = Mapping[str, Any]


def print_analysis(analysis: Analysis, rephrase: Callable[[str], str] = str) -> None:
    """Print a header, a table with one row per layer, and the verdict with one line per sentence.

    `rephrase` is applied to every sentence, for example to replace parameters by options.
    """
    record = Record.of(analysis.record)
    console = Terminal(_PIPED)
    for line in _header(record):
        console.print(line, soft_wrap=True)
    into = {block.target: block for block in record.blocks}
    rows = [(layer, into.get(layer.name)) for layer in record.layers]
    columns = [
        Column(name, [show(*row) for row in rows], drop_order, names=name == "layer")
        for name, show, drop_order in _columns(record)
    ]
    caption = _CAPTION + few_samples_note(record)
    console.print(fit_to_width(columns, console.width, caption=caption))
    for sentence in record.verdict:
        mark = _MARKS.get(sentence.strength or "", "-")
        console.print(f"{mark} {rephrase(sentence.words)}", soft_wrap=not console.is_terminal)


def _header(record: Record) -> list[str]:
    """Return lines on the network, the images, and how far the results can be trusted."""
    origin, trust = record.provenance, record.trust
    split = f" ({origin.split})" if origin.split else ""
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


def _in_parentheses(text: str) -> str:
    return f" ({text})" if text else ""


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


# Name, function that returns a cell, and `drop_order` (see `widths.Column`).
_COLUMNS: tuple[tuple[str, Show, int], ...] = (
    ("layer", lambda layer, _: layer.name, 0),
    ("W2", _block("distance"), 0),
    ("interval", _interval, 2),
    ("corr.", _correlation, 0),
    ("OT centered", _block("ot_score_centred", "{:z.4f}"), 3),
    ("asymmetry", _block("asymmetry", "{:.2f}"), 1),
    ("NC1", _collapse("nc1"), 0),
    ("NCC acc.", _collapse("ncc_accuracy", "{:.3f}"), 1),
)
_CORRECTED = ("NC1 corrected", _collapse("nc1_corrected"), 0)
_CAPTION = (
    "corr.: correlation score, 1 for an optimal map; in parentheses if null maps score about as "
    "high, so that it is not evidence. NCC acc.: accuracy of the nearest class mean."
)


def _columns(record: Record) -> list[tuple[str, Show, int]]:
    columns = list(_COLUMNS)
    if has_corrected(record):
        columns.insert([name for name, _, _ in columns].index("NC1") + 1, _CORRECTED)
    return columns


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
    over = not by_epoch and bool(runs)
    first = "epoch" if by_epoch else "name"
    columns = [
        column(first, lambda row: str(row[first]), once=True),
        column("segment", lambda row: row["segment"]),
        column("accuracy", value("accuracy", "{:.3f}"), 1, once=True),
        column("length ratio", _length_ratio),
        column("centered", value("length_ratio_centred"), 2),
        *([column(f"over k = {runs}", value("length_over_runs_centred"), 2)] if over else []),
        column("sqrt B", value("sqrt_moving_blocks"), 3),
        column(
            "corr.",
            lambda row: _in_parentheses_unless(row["power"], _cell(row["corr_score"], "{:z.4f}")),
        ),
        column("NC1, last", value("nc1", "{:.4g}"), once=True),
        column("tau of NC1", value("tau", "{:+z.2f}"), 3, once=True),
    ]
    caption = (
        "over k: the centered length ratio over k runs of consecutive blocks, for networks of "
        "different depth. "
        * over
        + "sqrt B: the length ratio that orthogonal steps of the same sizes would have. corr. is "
        "in parentheses if it is not clearly above that of null maps."
    )
    terminal = Terminal(130)
    terminal.print(fit_to_width(columns, terminal.width, title="Side by side", caption=caption))


def _in_parentheses_unless(certain: Any, text: str) -> str:
    return text if certain else f"({text})"


def _length_ratio(row: Row) -> str:
    low, high = row["length_ratio_low"], row["length_ratio_high"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{_cell(row['length_ratio'], '{:.2f}')}{interval}"


def _cell(value: float | None, form: str = "{:.4g}") -> str:
    return "undefined" if value is None else form.format(value)
