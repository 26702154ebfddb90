"""The pages of a report: convert a record to Markdown, without computing anything.

This module writes the first page, and the pages of methods and provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..plots.files import catalog
from ..plots.sources import as_record, as_series, is_series
from ..plots.style import numbers, short
from ..storage.record import Layer, Record, Segment
from ..text import counted
from ..thresholds import LOW_RESOLUTION
from .layers import collapse, models
from .markdown import (
    DASH,
    Plots,
    asset,
    base_name,
    code,
    correlation,
    figure_block,
    fixed,
    flat,
    general,
    headline_box,
    join,
    key_values,
    last_means,
    path_descriptions,
    percent,
    plain,
    sentence,
    stage_ends,
    stage_title,
    table,
    term,
    value_with_interval,
)
from .paths import straightness, transport
from .series import series_title, side_by_side


def pages(source: Any) -> dict[str, str]:
    """Return the Markdown of every page by name; ``index`` has the table of contents."""
    if is_series(source):
        series = as_series(source)
        return side_by_side(series, {plot.stem: plot for plot in catalog(series)})
    record = as_record(source)
    plots = {plot.stem: plot for plot in catalog(record)}
    texts = {name: text for name, write in _PAGES.items() if (text := write(record, plots))}
    summary = figure_block(plots, last_means(record))
    placed = "".join([summary, *texts.values()])
    others = [figure_block(plots, stem) for stem in plots if f"figures/{stem}.*" not in placed]
    if others:
        texts["figures"] = join("# More figures", *others)
    return {"index": _index(record, summary, list(texts)), **texts}


def title(source: Any) -> str:
    """Return the title of the report, network and data, as one line of plain text."""
    if is_series(source):
        return series_title(as_series(source))
    about = as_record(source).provenance
    net, data = about.arch or "Features", about.data
    return short(net, 60) + (f" on {short(base_name(data), 60)}" if data else "")


def _index(record: Record, figure: str, others: Sequence[str]) -> str:
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *others, "```"])
    linked = ", ".join(f"[]({name}.md)" for name in others)
    return join(
        f"# {plain(title(record))}",
        headline_box(record),
        _trust(record),
        "## At a glance",
        _glance(record),
        _verdict(record),
        figure,
        f"The next pages have the other figures and tables: {linked}.",
        toc,
    )


_POOLS = {"gap": " (means over space)", "flat": " (not pooled)", "cls": " (first token)"}


def _trust(record: Record) -> str:
    """Return one line of facts on how far the numbers can be trusted."""
    about, trust, blocks = record.provenance, record.trust, record.blocks
    parts = []
    if about.samples:
        split = f"{plain(about.split)} " if about.split else ""
        smallest = trust.samples_per_class
        per_class = f", at least {general(smallest)} per class" if smallest else ""
        parts.append(f"{general(about.samples)} {split}samples{per_class}")
    if record.accuracy is not None:
        context = []
        if trust.chance is not None:
            context.append(f"{term('guessing')} {percent(trust.chance)}")
        if trust.claimed_accuracy:
            stated = percent(trust.claimed_accuracy.value)
            context.append(f"the checkpoint's file states {stated}")
        in_brackets = f" ({', '.join(context)})" if context else ""
        parts.append(f"accuracy {percent(record.accuracy)}{in_brackets}")
    if used := trust.normalization:
        parts.append(f"{term('normalization')} {plain(used.name)}, {used.origin}")
    if blocks:
        certified = sum(block.status == "certified" for block in blocks)
        parts.append(f"{certified} of {len(blocks)} distances {term('certified')}")
    resolutions = [x for x in numbers([block.resolution for block in blocks]) if np.isfinite(x)]
    if resolutions:
        ends = [general(end, 2) for end in (min(resolutions), max(resolutions))]
        values = " to ".join(dict.fromkeys(ends))
        parts.append(f"{term('resolution')} {values} (sufficient from {LOW_RESOLUTION})")
    powers = [bool(segment.power) for segment in record.segments if segment.corr_score]
    if powers:
        stages = f"{sum(powers)} of {counted(len(powers), 'stage')}"
        parts.append(f"correlation scores have {term('power')} in {stages}")
    if about.pool:
        parts.append(f"features: {plain(about.pool)}{_POOLS.get(about.pool, '')}")
    return f"**Can it be trusted?** {' · '.join(parts)}."


def _glance(record: Record) -> str:
    """Tabulate straightness, optimality and collapse of the input and of every stage."""
    layers, segments = record.layers, record.segments
    if not segments:
        return "This record has no segment of at least two layers in one feature space."
    rows = [
        [
            f"{plain(layer.name, 20)}, before any block",
            *([DASH] * 4),
            general(layer.collapse.measure("nc1")),
            percent(layer.collapse.measure("ncc_accuracy")),
        ]
        for layer in layers[:1]
        if layer.stage is None
    ]
    for i, (segment, shape) in enumerate(zip(segments, path_descriptions(record), strict=True)):
        rows.append(
            [
                plain(stage_title(segment, i, layers)),
                shape,
                value_with_interval(segment.centred, "length_ratio"),
                fixed(segment.centred.sqrt_moving_blocks, 2),
                correlation(segment),
                _change(segment, layers, "nc1", general),
                _change(segment, layers, "ncc_accuracy", percent),
            ]
        )
    header = (
        term("Stage", "stage"),
        term("path", "path"),
        term("length ratio", "length ratio"),
        term("right angles", "right angles"),
        term("correlation", "correlation score"),
        term("NC1"),
        term("nearest mean", "nearest class mean"),
    )
    return table(
        header,
        rows,
        "The input, then one row per stage; 95 % intervals in brackets. A geodesic has length "
        "ratio 1. Right angles: the length ratio that steps of the same sizes would have at right "
        "angles to each other. A correlation score in parentheses is not evidence, since the "
        "samples lack power. Nearest mean: accuracy of the nearest class mean on these samples.",
        text_columns=2,
    )


def _change(
    segment: Segment, layers: Sequence[Layer], metric: str, show: Callable[[Any], str]
) -> str:
    """Return a metric at the input of the segment's first block and the output of its last."""
    ends = stage_ends(segment, layers)
    return " → ".join(show(end.collapse.measure(metric)) for end in ends) or DASH


def _verdict(record: Record) -> str:
    sentences = [sentence(s.words) for s in record.verdict]
    if not sentences:
        return ""
    text = "\n".join(f"- {s}" for s in sentences) if len(sentences) > 1 else sentences[0]
    return f"## Verdict\n\n{text}"


def _thresholds(thresholds: Mapping[str, float | None]) -> str:
    rows = [[plain(name.replace("_", " ")), general(value)] for name, value in thresholds.items()]
    if not rows:
        return ""
    return join(
        "## Thresholds",
        "The wording of the verdict changes at these values. The documentation of "
        "`wgeo.analysis.THRESHOLDS` explains them.",
        table(("Threshold", "value"), rows, "Thresholds of the verdict."),
    )


def _provenance(record: Record, plots: Plots) -> str:
    about = {key: v for key, v in record.provenance.json.items() if key != "class_names"}
    pairs = flat({**about, **record.only("created", "device", "seed", "schema")})
    if names := record.provenance.class_names:
        pairs.append(("classes", plain(", ".join(names), 400)))
    versions = [(plain(k), plain(v)) for k, v in record.versions.items()]
    return join(
        "# Provenance",
        "Everything needed to reproduce these numbers. The numbers themselves are in "
        "{download}`analysis.json <analysis.json>`.",
        "## Command",
        code(record.command) if record.command else "Not recorded.",
        "## Input",
        key_values(pairs, "Network, data and settings.") or "Not recorded.",
        "## Versions",
        key_values(versions, "Software that may affect the numbers.") or "Not recorded.",
    )


_PAGES: dict[str, Callable[[Record, Plots], str]] = {
    "transport": transport,
    "straightness": straightness,
    "collapse": collapse,
    "models": models,
    "methods": lambda record, _: join(asset("methods.md"), _thresholds(record.thresholds)),
    "provenance": _provenance,
}
