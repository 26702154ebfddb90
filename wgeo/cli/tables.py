"""Print analyses as tables in a terminal, with the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from ..analysis import Analysis, Series
from ..analysis.verdict import few_samples_note
from ..checkpoints.provenance import describe_reading
from ..plots.series import series_rows
from ..runtime.terminal import Terminal

_PIPED = 110  # columns if the output is not a terminal
_ARCH_SOURCES = {  # how an architecture was determined that the user did not name
    "tensors": "recognized by its tensors",
    "config": "as its config.json says",
    "file": "as the file says",
}
_MARKS = {"warning": "!", "undecided": "?"}
Row = Mapping[str, Any]


def print_analysis(analysis: Analysis, rephrase: Callable[[str], str] = str) -> None:
    """Print a header, a row per layer, and the verdict, a line per sentence.

    Parameters
    ----------
    analysis : Analysis
    rephrase : callable
        Applied to every sentence: the command line replaces parameters by its options.
    """
    record = analysis.record
    console = Terminal(_PIPED)
    for line in _header(record):
        console.print(line, soft_wrap=True)
    into = {block["target"]: block for block in record["blocks"]}
    rows = [(layer, into.get(layer["name"])) for layer in record["layers"]]
    console.print(_fitting(_columns(record), rows, console.width, _caption(record)))
    for sentence in record["verdict"]:
        mark = _MARKS.get(sentence.get("strength"), "-")
        console.print(f"{mark} {rephrase(sentence['words'])}", soft_wrap=not console.is_terminal)


def _header(record: Row) -> list[str]:
    """Return lines on what was analysed, and whether to trust it."""
    origin, trust = record["provenance"], record.get("trust") or {}
    split = f" ({origin['split']})" if origin.get("split") else ""
    net = (origin["arch"] or "features") + _bracketed(
        _ARCH_SOURCES.get(origin.get("arch_from"), "")
    )
    lines = [
        f"{net} on {origin['data'] or 'arrays'}{split}, "
        f"{origin['samples']:,} samples, {origin['pool'] or 'given'} features"
    ]
    parts = []
    normalization = trust.get("normalization")
    if normalization:
        source = {"asked": "as specified", "file": "as the file says"}.get(
            normalization["source"], "assumed"
        )
        parts.append(f"normalization {normalization['name']}, {source}")
    if record["accuracy"] is not None:
        claimed = trust.get("claimed_accuracy")
        context = [f"guessing {trust['chance']:.3f}"] if trust.get("chance") is not None else []
        context += [f"the file claims {claimed['value']:.3f}"] if claimed else []
        parts.append(f"accuracy {record['accuracy']:.3f}" + _bracketed(", ".join(context)))
    how = describe_reading(origin.get("report") or {})
    return [*lines, *([f"weights: {how}"] if how else []), *(["; ".join(parts)] if parts else [])]


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def _block(key: str, form: str = "{:.4g}") -> Callable[[Row, Row | None], str]:
    return lambda _, block: "" if block is None else _cell(block.get(key), form)


def _collapse(key: str, form: str = "{:.3g}") -> Callable[[Row, Row | None], str]:
    return lambda layer, _: _cell(layer["collapse"].get(key), form)


def _interval(_: Row, block: Row | None) -> str:
    if block is None:
        return ""
    if block["status"] == "certified":
        return "certified"
    return f"[{block['lower']:.4g}, {block['upper']:.4g}]"


def _correlation(_: Row, block: Row | None) -> str:
    if block is None:
        return ""
    score = block.get("corr_score")
    text = "undefined" if score is None else f"{score[0]:.4f}"
    return text if block.get("power") else f"({text})"


# Name, cell of a row, and priority: a narrow terminal drops the columns with the highest number.
_COLUMNS: tuple[tuple[str, Callable[[Row, Row | None], str], int], ...] = (
    ("layer", lambda layer, _: layer["name"], 0),
    ("W2", _block("distance"), 0),
    ("interval", _interval, 2),
    ("corr.", _correlation, 0),
    ("OT centred", _block("ot_score_centred", "{:.4f}"), 3),
    ("asymmetry", _block("asymmetry", "{:.2f}"), 1),
    ("NC1", _collapse("nc1"), 0),
    ("NCC acc.", _collapse("ncc_accuracy", "{:.3f}"), 1),
)
_CAPTION = (
    "corr.: correlation score, 1 for an optimal map; in brackets if random maps score about as "
    "high, so that these samples cannot show one. NCC acc.: accuracy of the nearest class mean."
)


_CORRECTED = ("NC1 corrected", _collapse("nc1_corrected"), 0)


def _columns(record: Row) -> list[tuple[str, Callable[[Row, Row | None], str], int]]:
    """Return the columns for a record; with few samples per class, also corrected NC1."""
    columns = list(_COLUMNS)
    if any(layer["collapse"].get("nc1_corrected") is not None for layer in record["layers"]):
        columns.insert([name for name, _, _ in columns].index("NC1") + 1, _CORRECTED)
    return columns


def _caption(record: Row) -> str:
    return _CAPTION + few_samples_note(record.get("trust") or {})


def _fitting(
    columns: Sequence[tuple[str, Callable[[Row, Row | None], str], int]],
    rows: Sequence[tuple[Row, Row | None]],
    width: int,
    caption: str,
) -> Table:
    """Return a table of the columns that fit a terminal; numbers are never cut."""
    shown = list(columns)
    while True:
        cells = [[show(*row) for _, show, _ in shown] for row in rows]
        names = [name for name, _, _ in shown]
        needed = (
            sum(max(map(len, column)) for column in zip(names, *cells, strict=True))
            + 3 * len(shown)
            + 1
        )
        least = max(priority for _, _, priority in shown)
        if needed <= width or least == 0:
            break
        shown = [column for column in shown if column[2] < least]
    table = Table(caption=caption, caption_justify="left")
    for name in names:
        first = name == names[0]
        table.add_column(
            name,
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold",
        )
    for line in cells:
        table.add_row(*line)
    return table


def print_series(series: Series) -> None:
    """Print a row per analysis and segment."""
    by_epoch = series.record["axis"] == "epoch"
    table = Table(title="Side by side", title_justify="left", caption_justify="left")
    first = "epoch" if by_epoch else "name"
    rows = series_rows(series)
    runs = ", ".join(str(k) for k in sorted({row["runs"] for row in rows if row["runs"]}))
    over = () if by_epoch or not runs else (f"over k = {runs}",)
    head = ("segment", "accuracy", "length ratio", "centred", *over, "sqrt B", "corr.", "NC1, last")
    for name in (first, *head, "tau of NC1"):
        left = name in ("name", "segment")
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=not left
        )
    before = None
    for row in rows:
        repeated = row["name"] == before
        before = row["name"]
        table.add_row(
            "" if repeated else str(row[first]),
            row["segment"],
            "" if repeated else _cell(row["accuracy"], "{:.3f}"),
            _with_interval(row, "length_ratio"),
            _cell(row["length_ratio_centred"], "{:.2f}"),
            *(_cell(row["length_over_runs_centred"], "{:.2f}") for _ in over),
            _cell(row["sqrt_moving_blocks"], "{:.2f}"),
            _bracketed_unless(row["power"], _cell(row["corr_score"], "{:.4f}")),
            "" if repeated else _cell(row["nc1"]),
            "" if repeated else _cell(row["tau"], "{:+.2f}"),
        )
    table.caption = (
        "over k: the centred length over k runs of blocks, to compare networks of different depth. "
        * bool(over)
        + "sqrt B: the length ratio that orthogonal steps of the same sizes would have. corr. in "
        "brackets: not clearly above that of null maps."
    )
    Terminal(130).print(table)


def _bracketed_unless(certain: Any, text: str) -> str:
    return text if certain else f"({text})"


def _with_interval(row: Row, key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{_cell(row[key], '{:.2f}')}{ends}"


def _cell(value: float | None, form: str = "{:.4g}") -> str:
    return "undefined" if value is None else form.format(value)
