"""The pages of several analyses side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plots.series import common_runs, runs_in
from ..plots.style import segment_name, short
from .assets import asset
from .parts import (
    Plots,
    Record,
    centred,
    correlation,
    figure_block,
    highest_null,
    interval,
    join,
    score,
)
from .scrubber import scrubber
from .text import DASH, code, figure, fixed, plain, sentence, share, table, with_interval

_ALIKE = ("data", "split", "samples", "pool", "tap", "normalize")  # for figures to compare


def series_title(series: Record) -> str:
    """What the report is about, as plain text on one line."""
    rows = series["analyses"]
    nets = list(dict.fromkeys(str(row["provenance"].get("arch") or "features") for row in rows))
    if series["axis"] == "epoch":
        return f"{short(nets[0], 60)} over training"
    return f"{len(rows)} analyses: {short(', '.join(nets), 80)}"


def side_by_side(series: Record, plots: Plots) -> dict[str, str]:
    """Every page by name, its Markdown."""
    made = {
        "straightness": _straightness(series),
        "collapse": _collapse(series, plots),
        "verdicts": _verdicts(series),
        "methods": asset("methods.md"),
        "provenance": _provenance(series),
    }
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *made, "```"])
    index = join(
        f"# {plain(series_title(series))}",
        _lead(series),
        figure_block(plots, "over"),
        figure_block(plots, "profiles"),
        toc,
    )
    return {"index": index, **made}


def _name(series: Record, row: Mapping[str, Any]) -> str:
    if series["axis"] == "epoch":
        return f"epoch {figure(row['provenance']['epoch'])}"
    return plain(row["name"], 40)


def _lead(series: Record) -> str:
    rows = series["analyses"]
    about = [row["provenance"] for row in rows]
    samples = sorted({a["samples"] for a in about if isinstance(a.get("samples"), int)})
    what = "checkpoints of one training" if series["axis"] == "epoch" else "networks"
    said = f"{len(rows)} {what}"
    if samples:
        said += f", each on {' or '.join(figure(n) for n in samples)} samples"
    differ = [key for key in _ALIKE if len({str(a.get(key)) for a in about}) > 1]
    solvers = {block.get("solver") for row in rows for block in row["blocks"]}
    differ += ["solver"] * (len(solvers) > 1)
    warning = ""
    if differ:
        warning = f"They differ in {', '.join(differ)}, and compare only as far as that allows."
    if "samples" in differ:
        warning += " Empirical Wasserstein distances are biased by the number of samples."
    return join(f"{said}.", warning).strip()


def _straightness(series: Record) -> str:
    rows = [
        [
            _name(series, row),
            plain(segment_name(segment, i)),
            with_interval(segment.get("length_ratio"), interval(segment, "length_ratio")),
            centred(segment, "length_ratio"),
            _over_runs(series, segment, i),
            with_interval(segment.get("line_shape_ratio"), interval(segment, "line_shape_ratio")),
            with_interval(segment.get("action_ratio"), interval(segment, "action_ratio")),
            correlation(segment),
            highest_null(segment),
            score(segment),
        ]
        for row in series["analyses"]
        for i, segment in enumerate(row["segments"])
    ]
    runs = ", ".join(map(str, runs_in(series))) or DASH
    header = (
        *("Analysis", "segment", "length ratio", "centred", f"centred, over k = {runs} runs"),
        *("line-shape ratio", "action ratio", "correlation score", "highest null", "OT score"),
    )
    return join(
        "# Straightness",
        "Every ratio is 1 on a geodesic run at constant speed. Centred: with each layer's mean "
        "taken off. The more layers of a path are looked at, the longer it is: networks of "
        "different depth compare at equal k, over runs of blocks. Scores in brackets: the sample "
        "cannot tell. [How they are defined](methods.md).",
        table(header, rows, "Straightness of every segment; 95 % intervals in brackets."),
    )


def _over_runs(series: Record, segment: Mapping[str, Any], index: int) -> str:
    """The centred length over as many runs as all analyses have, and how many these are."""
    k = common_runs(series["analyses"], index)
    known = (segment.get("centred") or {}).get("length_over_runs") or {}
    text = fixed(known.get(str(k)))
    return text if text == DASH or len(runs_in(series)) < 2 else f"{text} (k = {k})"


def _collapse(series: Record, plots: Plots) -> str:
    rows = []
    for row in series["analyses"]:
        last = ((row.get("layers") or [{}])[-1].get("collapse")) or {}
        tau = (row.get("progress") or {}).get("nc1") or {}
        rows.append(
            [
                _name(series, row),
                share(row.get("accuracy")),
                *(figure(last.get(key)) for key in ("nc1", "cdnv", "nc2_etf", "nc3")),
                share(last.get("ncc_accuracy")),
                with_interval(tau.get("kendall_tau"), tau.get("interval")),
                figure(tau.get("violations")),
            ]
        )
    header = ("Analysis", "accuracy", "NC1", "CDNV", "to ETF", "NC3", "nearest centre")
    return join(
        "# Collapse",
        "At the last layer; over depth, Kendall's τ of NC1 is −1 where it falls at every layer.",
        table((*header, "τ of NC1", "rises"), rows, "Collapse of every analysis."),
        figure_block(plots, "profiles", caption=False),
        *_training(series, plots),
    )


def _training(series: Record, plots: Plots) -> list[str]:
    """The last layer's classes over the epochs, under a slider."""
    moving = scrubber(series)
    if not moving:
        return []
    return [
        "## The last layer over training",
        "Class means and some of the samples. Every epoch is brought to the same spread and turned "
        "onto the next, since neither size nor orientation say anything about collapse: what is "
        "left to see is how the samples close in on their class means, and these on a simplex.",
        moving,
        figure_block(plots, "class-means-training"),
    ]


def _verdicts(series: Record) -> str:
    parts = []
    for row in series["analyses"]:
        parts += [
            f"## {_name(series, row)}",
            *(f"- {sentence(said['words'])}" for said in row["verdict"]),
        ]
        if row.get("folder"):
            parts.append(f"Its own record: {plain(row['folder'], 120)}")
    return join("# Verdicts", *parts)


def _provenance(series: Record) -> str:
    rows = [
        [
            _name(series, row),
            plain(row["provenance"].get("arch") or "", 40),
            plain(str(row["provenance"].get("sha256") or "")[:16]),
            plain(row.get("created") or ""),
        ]
        for row in series["analyses"]
    ]
    commands = list(dict.fromkeys(str(row.get("command") or "") for row in series["analyses"]))
    return join(
        "# Provenance",
        "The numbers themselves: {download}`series.json <series.json>`.",
        table(
            ("Analysis", "architecture", "SHA-256 begins", "created"), rows, "What was analysed."
        ),
        "## Commands",
        *(code(command) for command in commands if command),
    )
