"""The first screen of a report: headline, reliability, table of stages, and verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..plots.style import clean, numbers
from ..storage.record import (
    Block,
    Layer,
    Normalization,
    Provenance,
    Record,
    Segment,
    SeriesRecord,
    Trust,
)
from ..text import counted
from ..thresholds import LOW_RESOLUTION
from .parts import (
    correlation,
    join,
    path_descriptions,
    stage_ends,
    stage_title,
    value_with_interval,
)
from .text import DASH, escaped, fixed, general, percent, plain, sentence, table, term


def first_screen(record: Record) -> str:
    return join(
        headline_box(record),
        _trust(record),
        "## At a glance",
        _glance(record),
        _verdict(record),
    )


# --- headline ------------------------------------------------------------------------------------

_TERMS = {  # terms that a headline may contain, and their entries in the glossary
    "path of the features": "path",
    "stages": "stage",
    "stage": "stage",
    "straight": "straight",
    "bent": "straight",
    "collapsed": "collapsed",
    "collapse": "collapsed",
    "last layer": "last layer",
    "95 % intervals": "interval",
    "normalized": "normalization",
    "guessing": "guessing",
    "NC1": "NC1",
}
_POOLS = {"gap": " (means over space)", "flat": " (not pooled)", "cls": " (first token)"}
_WORDS = re.compile(rf"\b({'|'.join(_TERMS)})\b")


def headline_box(record: Record | SeriesRecord) -> str:
    """Return the recorded headline in a box; the first use of each term links to the glossary."""
    words = record.headline.words
    if not words:
        return ""
    linked: set[str] = set()
    parts = []
    for k, part in enumerate(_WORDS.split(clean(words))):
        entry = _TERMS[part] if k % 2 else ""
        parts.append(term(part, entry) if entry and entry not in linked else escaped(part))
        linked.add(entry)
    text = "".join(parts)
    return f"```````{{admonition}} In one sentence\n:class: tip wgeo-headline\n\n{text}\n```````"


# --- trust ---------------------------------------------------------------------------------------


def _trust(record: Record) -> str:
    """Return one line of facts on how far the numbers can be trusted."""
    about, trust = record.provenance, record.trust
    parts = [
        _samples(about, trust),
        f"accuracy {percent(record.accuracy)}{_accuracy_context(trust)}"
        if record.accuracy is not None
        else "",
        _normalized(trust.normalization),
        _certified(record.blocks),
        _resolution(record.blocks),
        _power(record.segments),
        f"features: {plain(about.pool)}{_POOLS.get(about.pool, '')}" if about.pool else "",
    ]
    return f"**Can it be trusted?** {' · '.join(part for part in parts if part)}."


def _samples(about: Provenance, trust: Trust) -> str:
    samples, split = about.samples, about.split
    if not samples:
        return ""
    smallest = trust.samples_per_class
    per_class = f", at least {general(smallest)} per class" if smallest else ""
    return f"{general(samples)} {plain(split) + ' ' if split else ''}samples{per_class}"


def _accuracy_context(trust: Trust) -> str:
    parts = []
    if trust.chance is not None:
        parts.append(f"{term('guessing')} {percent(trust.chance)}")
    claimed = trust.claimed_accuracy
    parts += [f"the checkpoint's file states {percent(claimed.value)}"] if claimed else []
    return f" ({', '.join(parts)})" if parts else ""


def _normalized(normalization: Normalization) -> str:
    if not normalization:
        return ""
    return f"{term('normalization')} {plain(normalization.name)}, {normalization.origin}"


def _certified(blocks: Sequence[Block]) -> str:
    if not blocks:
        return ""
    number = sum(block.status == "certified" for block in blocks)
    return f"{number} of {len(blocks)} distances {term('certified')}"


def _resolution(blocks: Sequence[Block]) -> str:
    values = numbers([block.resolution for block in blocks])
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    ends = " to ".join(dict.fromkeys(general(end, 2) for end in (values.min(), values.max())))
    return f"{term('resolution')} {ends} (sufficient from {LOW_RESOLUTION})"


def _power(segments: Sequence[Segment]) -> str:
    powers = [segment.power for segment in segments if segment.corr_score]
    if not powers:
        return ""
    return (
        f"correlation scores have {term('power')} in {sum(map(bool, powers))} of "
        f"{counted(len(powers), 'stage')}"
    )


# --- the table -----------------------------------------------------------------------------------


def _glance(record: Record) -> str:
    """Tabulate straightness, optimality and collapse of the input and of every stage."""
    layers = record.layers
    segments = record.segments
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
    return join("## Verdict", text).rstrip()
