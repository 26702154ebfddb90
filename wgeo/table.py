"""An analysis as a table that a person can read, and its verdict."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .analysis import Analysis, Series
from .plots import series_rows
from .plots.style import resolved
from .terminal import Terminal


def print_analysis(done: Analysis) -> None:
    """Print a row a block, then the verdict in words."""
    record = done.record
    origin = record["provenance"]
    accuracy = record["accuracy"]
    title = (
        f"{origin['arch']} on {origin['data']}, {origin['samples']} samples"
        + (f", accuracy {accuracy:.3f}" if accuracy is not None else "")
        + f", {origin['pool']} features"
    )
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in ("layer", "W2 from before", "interval", "paired", "OT score", "resolution"):
        table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
    for name in ("NC1", "NCC acc."):
        table.add_column(name, justify="right", no_wrap=True)
    into = {block["target"]: block for block in record["blocks"]}
    for layer in record["layers"]:
        block = into.get(layer["name"])
        table.add_row(layer["name"], *_transport_cells(block), *_collapse_cells(layer["collapse"]))
    table.caption = "OT score in brackets: too few samples to mean anything (resolution < 0.5)."
    console = Terminal(110)
    console.print(table)
    console.print(done.verdict, soft_wrap=not console.is_terminal)


def print_series(series: Series) -> None:
    """Print a row an analysis and segment."""
    by_epoch = series.record["axis"] == "epoch"
    table = Table(title="Side by side", title_justify="left", caption_justify="left")
    first = "epoch" if by_epoch else "name"
    for name in (first, "segment", "accuracy", "length ratio", "line-shape ratio", "OT score"):
        table.add_column(name, justify="left" if name in ("name", "segment") else "right")
    for name in ("NC1, last", "tau of NC1"):
        table.add_column(name, justify="right")
    before = None
    for row in series_rows(series):
        score = _cell(row["ot_score"], "{:.4f}")
        again = row["name"] == before
        before = row["name"]
        table.add_row(
            "" if again else str(row[first]),
            row["segment"],
            "" if again else _cell(row["accuracy"], "{:.3f}"),
            _with_interval(row, "length_ratio"),
            _with_interval(row, "line_shape_ratio"),
            score if resolved(row) else f"({score})",
            "" if again else _cell(row["nc1"]),
            "" if again else _cell(row["tau"], "{:+.2f}"),
        )
    table.caption = "OT score in brackets: too few samples to mean anything (resolution < 0.5)."
    Terminal(130).print(table)


def _with_interval(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{_cell(row[key], '{:.2f}')}{ends}"


def _transport_cells(block: dict[str, Any] | None) -> list[str]:
    if block is None:
        return [""] * 5
    score, resolution = block["ot_score"], block["resolution"]
    text = _cell(score, "{:.4f}")
    if not resolved(block):
        text = f"({text})"
    interval = "certified" if block["status"] == "certified" else _interval(block)
    return [
        _cell(block["distance"]),
        interval,
        _cell(block["paired"]),
        text,
        _cell(resolution, "{:.2f}"),
    ]


def _interval(block: dict[str, Any]) -> str:
    return f"[{block['lower']:.4g}, {block['upper']:.4g}]"


def _collapse_cells(figures: dict[str, Any]) -> list[str]:
    return [_cell(figures["nc1"]), _cell(figures["ncc_accuracy"], "{:.3f}")]


def _cell(value: float | None, form: str = "{:.4g}") -> str:
    return "undefined" if value is None else form.format(value)
