"""The pages of a report that compares several analyses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any
from urllib.parse import quote

from ..plots.series import common_runs, runs_in, segment_count
from ..plots.style import number, segment_name, short
from ..storage.record import AnalysisRow, Segment, SeriesRecord
from ..text import stage_number
from .markdown import (
    DASH,
    Plots,
    asset,
    base_name,
    code,
    correlation,
    figure_block,
    fixed,
    general,
    headline_box,
    highest_null,
    join,
    path_descriptions,
    percent,
    plain,
    score,
    sentence,
    table,
    term,
    value_with_interval,
    with_interval,
)
from .scrubber import scrubber

_COMMON = ("data", "split", "samples", "pool", "tap", "normalize")  # equal in comparable analyses


def series_title(series: SeriesRecord) -> str:
    rows = series.analyses
    nets = list(dict.fromkeys(str(row.provenance.arch or "features") for row in rows))
    if series.axis == "epoch":
        return f"{short(nets[0], 60)} over training"
    return f"{len(rows)} analyses: {short(', '.join(nets), 80)}"


def side_by_side(series: SeriesRecord, plots: Plots) -> dict[str, str]:
    texts = {
        "straightness": _straightness(series, plots),
        "collapse": _collapse(series, plots),
        "verdicts": _verdicts(series),
        "methods": asset("methods.md"),
        "provenance": _provenance(series),
    }
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *texts, "```"])
    index = join(
        f"# {plain(series_title(series))}",
        headline_box(series),
        _introduction(series),
        "## Side by side",
        _compared(series),
        figure_block(plots, "over"),
        toc,
    )
    return {"index": index, **texts}


def _name(series: SeriesRecord, row: AnalysisRow) -> str:
    if series.axis == "epoch":
        return f"epoch {general(row.epoch)}"
    return plain(row.name, 40)


def _linked(series: SeriesRecord, row: AnalysisRow) -> str:
    """Return the name of an analysis, linked to its own report if there is one."""
    name = _name(series, row)
    return f'<a href="{escape(quote(row.report))}">{name}</a>' if row.report else name


def _compared(series: SeriesRecord) -> str:
    """Tabulate accuracy, shapes of the paths and collapse, with differences from the first row."""
    rows = series.analyses
    count = segment_count(series)
    header = ["Analysis", "accuracy", term("NC1"), term("nearest mean", "nearest class mean")]
    for i in range(count):
        stage = f"stage {_stage_numbers(rows, i)}"
        header += [f"{term(stage, 'stage')}: {term('path')}", f"{stage}: {term('length ratio')}"]
    body = [[_linked(series, row), *_values(row, count)] for row in rows]
    body += [
        [f"{_name(series, row)} − {_name(series, rows[0])}", *_differences(rows[0], row, count)]
        for row in rows[1:]
    ]
    return table(
        header,
        body,
        "The analyses, followed by the differences from the first. Collapse is that of the last "
        "layer; 95 % intervals in brackets. The name of an analysis is a link to its report, if "
        "there is one.",
    )


def _stage_numbers(rows: Sequence[AnalysisRow], i: int) -> str:
    """Return the stage of the i-th segment, such as "2", or "1 or 2" if analyses differ."""
    segments = [row.segments[i] for row in rows if i < len(row.segments)]
    numbers = {stage_number(segment.stage, i) for segment in segments}
    return " or ".join(map(str, sorted(numbers)))


def _values(row: AnalysisRow, count: int) -> list[str]:
    last = row.last_layer
    cells = [
        percent(row.accuracy),
        general(last.measure("nc1")),
        percent(last.measure("ncc_accuracy")),
    ]
    for segment, shape in zip(row.segments, path_descriptions(row), strict=True):
        cells += [shape, value_with_interval(segment.centred, "length_ratio")]
    return cells + [DASH] * (2 * (count - len(row.segments)))


def _differences(first: AnalysisRow, row: AnalysisRow, count: int) -> list[str]:
    def difference(value: Callable[[AnalysisRow], Any], show: Callable[[Any], str]) -> str:
        text = show(number(value(row)) - number(value(first)))
        return text if text == DASH or text.startswith("−") else f"+{text}"

    def length_ratio(i: int, each: AnalysisRow) -> float | None:
        return each.segments[i].centred.length_ratio if i < len(each.segments) else None

    cells = [
        difference(lambda each: each.accuracy, _points),
        difference(lambda each: each.last_layer.measure("nc1"), general),
        difference(lambda each: each.last_layer.measure("ncc_accuracy"), _points),
    ]
    for i in range(count):
        cells += [DASH, difference(partial(length_ratio, i), fixed)]
    return cells


def _points(fraction: float) -> str:
    return percent(fraction).replace(" %", " points")


def _introduction(series: SeriesRecord) -> str:
    rows = series.analyses
    about = [row.provenance for row in rows]
    samples = sorted({each.samples for each in about if each.samples is not None})
    kind = "checkpoints of one training run" if series.axis == "epoch" else "networks"
    text = f"{len(rows)} {kind}"
    if samples:
        text += f", each on {' or '.join(general(n) for n in samples)} samples"
        data, split = about[0].data, about[0].split
        if data and len({(each.data, each.split) for each in about}) == 1:
            text += f" of {plain(base_name(data))}{f' ({plain(split)} split)' if split else ''}"
    differ = [key for key in _COMMON if len({str(each.json.get(key)) for each in about}) > 1]
    solvers = {block.solver for row in rows for block in row.blocks}
    differ += ["solver"] * (len(solvers) > 1)
    warning = ""
    if differ:
        warning = f"They differ in {', '.join(differ)}, which limits the comparison."
    if "samples" in differ:
        warning += " The bias of empirical Wasserstein distances depends on the number of samples."
    return join(f"{text}.", warning).strip()


def _straightness(series: SeriesRecord, plots: Plots) -> str:
    rows = [
        [
            _name(series, row),
            plain(segment_name(segment.layers, i)),
            value_with_interval(segment, "length_ratio"),
            value_with_interval(segment.centred, "length_ratio"),
            _over_runs(series, segment, i),
            value_with_interval(segment, "line_shape_ratio"),
            value_with_interval(segment, "action_ratio"),
            correlation(segment),
            highest_null(segment),
            score(segment),
        ]
        for row in series.analyses
        for i, segment in enumerate(row.segments)
    ]
    if not rows:
        return join("# Straightness", "No analysis has a segment of at least two layers.")
    groups = ", ".join(map(str, runs_in(series))) or DASH
    header = (
        *(
            "Analysis",
            "segment",
            "length ratio",
            "centered",
            f"centered, over k = {groups} groups of blocks",
        ),
        *("line-shape ratio", "action ratio", "correlation score", "highest null", "OT score"),
    )
    return join(
        "# Straightness",
        "Every ratio is 1 on a geodesic with constant speed. Centered: with each layer's mean "
        "subtracted. A path is longer if more of its layers are included; compare networks of "
        "different depth over the same number k of groups of consecutive blocks. Scores in "
        "parentheses are not evidence of optimal maps. [Definitions](methods.md).",
        table(header, rows, "Straightness of every segment; 95 % intervals in brackets."),
        figure_block(plots, "block-distances"),
    )


def _over_runs(series: SeriesRecord, segment: Segment, index: int) -> str:
    """Return the centered length ratio over k runs, with k if it differs between segments."""
    k = common_runs(series.analyses, index)
    text = DASH if k is None else fixed(segment.centred.length_over_runs.get(k))
    return text if text == DASH or len(runs_in(series)) < 2 else f"{text} (k = {k})"


def _collapse(series: SeriesRecord, plots: Plots) -> str:
    rows = [
        [
            _name(series, row),
            percent(row.accuracy),
            *(general(row.last_layer.measure(key)) for key in ("nc1", "cdnv", "nc2_etf", "nc3")),
            percent(row.last_layer.measure("ncc_accuracy")),
            with_interval(row.trend("nc1").kendall_tau, row.trend("nc1").interval),
            general(row.trend("nc1").violations),
        ]
        for row in series.analyses
    ]
    header = (
        *("Analysis", "accuracy", "NC1", "CDNV", "to ETF", "NC3", "nearest mean"),
        *("τ of NC1", "increases"),
    )
    return join(
        "# Collapse",
        "Collapse at the last layer, and its trend: Kendall's τ of NC1 over depth is −1 if NC1 "
        "decreases at every layer.",
        table(header, rows, "Collapse of every analysis."),
        figure_block(plots, "profiles"),
        *_training(series, plots),
    )


def _training(series: SeriesRecord, plots: Plots) -> list[str]:
    animation = scrubber(series)
    if not animation:
        return []
    return [
        "## The last layer over training",
        "Class means and some of the samples. The features of every epoch are scaled to the same "
        "spread and rotated onto those of the next, since collapse depends neither on size nor on "
        "orientation. The remaining changes show how the samples approach their class means, and "
        "how the class means approach a simplex.",
        animation,
        figure_block(plots, "class-means-training"),
    ]


def _verdicts(series: SeriesRecord) -> str:
    parts = []
    for row in series.analyses:
        parts += [
            f"## {_name(series, row)}",
            f"Report: {_linked(series, row)}." if row.report else "",
            *(f"- {sentence(s.words)}" for s in row.verdict),
        ]
        if row.folder:
            parts.append(f"Record: {plain(row.folder, 120)}")
    return join("# Verdicts", *parts)


def _provenance(series: SeriesRecord) -> str:
    rows = [
        [
            _name(series, row),
            plain(row.provenance.arch or DASH, 40),
            plain((row.provenance.sha256 or DASH)[:16]),
            plain(row.created or DASH),
        ]
        for row in series.analyses
    ]
    commands = dict.fromkeys(row.command for row in series.analyses)
    return join(
        "# Provenance",
        "All numbers: {download}`series.json <series.json>`.",
        table(("Analysis", "architecture", "start of SHA-256", "created"), rows, "The networks."),
        "## Commands",
        *(code(command) for command in commands if command),
    )
