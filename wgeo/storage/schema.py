"""The schema by which records are validated before they are drawn or reported.

A description of a value is one of the following:

- a predicate;
- ``[d]``: a list of values with the description d;
- a mapping of keys to descriptions. A key that ends in ``?`` may be missing or null, and ``*``
  describes every key that is not listed. Values without a description are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Description = Callable[[Any], bool] | list[Any] | Mapping[str, Any]

_LARGEST = 1e300  # beyond it, squares and axes overflow


def text(value: Any) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def whole(value: Any) -> bool:
    """Return whether a value is an integer that fits in 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number(value: Any) -> bool:
    """Return whether a value is a finite number, or null, which means undefined."""
    if value is None or whole(value):
        return True
    return isinstance(value, float) and math.isfinite(value) and abs(value) <= _LARGEST


def flag(value: Any) -> bool:
    """Return whether a value is true, false, or null."""
    return value is None or isinstance(value, bool)


def count(value: Any) -> bool:
    """Return whether a value is a nonnegative integer."""
    return whole(value) and value >= 0


def interval(value: Any) -> bool:
    """Return whether a value is a list of two numbers, or null."""
    pair = isinstance(value, list) and len(value) == 2
    return value is None or (pair and all(map(number, value)))


def points(*axes: int | None) -> Callable[[Any], bool]:
    """Return a predicate for nested lists that form an array of these axis lengths (None: any)."""

    def check(value: Any) -> bool:
        try:
            array = np.array(value, dtype=float)
        except (ValueError, TypeError, OverflowError):
            return False
        fits = all(axis in (None, size) for axis, size in zip(axes, array.shape, strict=False))
        return array.ndim == len(axes) and fits and bool((np.abs(array) <= _LARGEST).all())

    return check


def score(value: Any) -> bool:
    """Return whether a value is a list of a number and the ends of its interval, or null."""
    triple = isinstance(value, list) and len(value) == 3
    return value is None or (triple and all(map(number, value)))


_COLLAPSE = {"undefined?": {"*": text}, "intervals?": {"*": interval}, "*": number}
_TREND = {
    **dict.fromkeys(("kendall_tau?", "violations?", "violation_size?", "reached_depth?"), number),
    "monotone?": flag,
    "reached?": text,
    "interval?": interval,
    "increases?": [text],
}
_BRENIER = {
    "intervals?": {"*": interval},
    "excluded?": flag,
    "excluded_by?": [text],
    "blocks?": [text],
    "*": lambda value: text(value) or number(value),
}
_LAYER = {"name": text, "stage?": whole, "width?": whole, "collapse": _COLLAPSE}
_OPTIMALITY = {
    **dict.fromkeys(("samples?", "distinct?"), whole),
    "spread?": [number],
    **dict.fromkeys(("spread_ratio?", "relative_displacement?"), number),
    **dict.fromkeys(("effective_samples?", "relative_rounding?"), number),
    **dict.fromkeys(("shift_share?", "ot_score_centred?"), number),
    "corr_score?": score,
    "null?": [{"kind": text, "score": score, "draws": [number], "own": score, "*": number}],
    "power?": flag,
}
_BLOCK = {
    "source": text,
    "target": text,
    **dict.fromkeys(("stage?",), whole),
    **dict.fromkeys(("distance", "lower", "upper", "paired", "ot_score", "resolution"), number),
    **dict.fromkeys(("seconds?", "asymmetry?", "min_eigenvalue?"), number),
    **dict.fromkeys(("status", "solver", "via?"), text),
    "intervals?": {"*": interval},
    "brenier?": _BRENIER,
    **_OPTIMALITY,
}
_MATRIX = [[number]]
_PAIRS = {
    "layers": [text],
    **dict.fromkeys(("distance", "lower", "upper"), _MATRIX),
    **dict.fromkeys(("corr_score", "corr_low", "corr_high", "null?"), _MATRIX),
}
_SIZES = {
    "points": [{"size": whole, "*": number}],
    "enough?": whole,
}
_VIEW = {
    "class_means": points(None, None, 2),
    "explained": points(2),
    "points?": points(None, None, 2),
    "labels?": [whole],
    "classes?": [whole],
    "end?": {"class_means": points(None, None), "points": points(None, None)},
}
_SEGMENT = {
    "layers": [text],
    "stage?": whole,
    **dict.fromkeys(("distance", "length", "length_ratio", "action_ratio"), number),
    **dict.fromkeys(("line_shape_score", "line_shape_ratio", "ot_score", "turning_angle"), number),
    **dict.fromkeys(("paired?", "resolution?", "speed_deviation?", "orthogonal_share?"), number),
    **dict.fromkeys(("asymmetry?", "min_eigenvalue?"), number),
    "interpolation_gap?": [number],
    "interpolation_time?": [number],
    "quantiles?": {"*": {"*": [number]}},
    "undefined_samples?": {"*": whole},
    "intervals?": {"*": interval},
    "sample_sizes?": _SIZES,
    "view?": _VIEW,
    "brenier?": _BRENIER,
    **_OPTIMALITY,
    **dict.fromkeys(("moving_blocks?", "sqrt_moving_blocks?"), number),
    "length_over_runs?": {"*": number},
    "centred?": {"length_over_runs?": {"*": number}, "intervals?": {"*": interval}, "*": number},
    "pairs?": _PAIRS,
}
_PREDICTED = {
    "name": text,
    "stage?": whole,
    **dict.fromkeys(("time?", "gain?", "relative_error?", "r2?", "r2_means?"), number),
    **dict.fromkeys(("missed?", "w2?"), number),
    "collapse": _COLLAPSE,
}
_MODEL = {
    "layers": [_PREDICTED],
    "skipped?": text,
    **dict.fromkeys(("held_out_r2?", "held_out_r2_means?", "mu?", "readout_norm?"), number),
    "solution?": {"objective?": number, "settings?": {}},
}
_TEST = {
    "layers": [text],
    "statistic": text,
    **dict.fromkeys(("value", "reference", "difference", "effect_size", "p_value"), number),
    "interval?": interval,
    "verdict?": text,
}
_FRESH = {
    "layers": [text],
    "stage?": whole,
    **dict.fromkeys(("value", "median", "low", "high", "rank_p", "adjusted_p"), number),
    **dict.fromkeys(("as_straight?", "as_bent?"), whole),
    "direction": text,
}
_REFERENCE = {
    "kind?": text,
    "skipped?": text,
    "kept?": [text],
    "statistic?": text,
    "images?": whole,
    "networks?": [{"seed": whole, "segments": [{"centred": number, "raw": number}]}],
    "segments?": [_FRESH],
    "tests?": [_TEST],
}
_PROVENANCE = {
    **dict.fromkeys(("checkpoint?", "sha256?", "arch?", "data?", "split?", "pool?"), text),
    **dict.fromkeys(("num_classes?", "samples?"), whole),
    "epoch?": lambda value: isinstance(value, int),
    "class_names?": [text],
    "normalize?": lambda value: isinstance(value, str | dict),
    "normalize_source?": text,
    "claimed_accuracy?": {"key": text, "value": number},
    "arch_from?": text,
    "report?": {},
}
_SENTENCE = {"claim": text, "words": text, "strength?": text, "evidence?": {}}
_NORMALIZATION = {
    **dict.fromkeys(("name", "source"), text),
    "mean": [number],
    "std": [number],
    "tried?": [{"name": text, "accuracy": number}],
    "better?": text,
    "images?": whole,
}
_TRUST = {
    **dict.fromkeys(("samples?", "samples_per_class?", "duplicates?", "relabelled?"), whole),
    **dict.fromkeys(("accuracy?", "chance?", "chance_p?"), number),
    "at_chance?": flag,
    "claimed_accuracy?": {"key": text, "value": number},
    "classes?": {"present": whole, "head?": whole},
    "normalization?": _NORMALIZATION,
}
_SEGMENT_LAW = {
    "layers": [text],
    "stage?": whole,
    **{key: [number] for key in ("separation", "compression", "discrimination")},
    "intervals?": {"*": interval},
    "*": number,
}
_SEGMENT_ALIGNMENT = {
    "blocks": [text],
    "slopes?": [number],
    "intervals?": {"*": interval},
    "*": number,
}
_ALIGNMENT = {
    "points": whole,
    **dict.fromkeys(("skipped?", "jacobian?"), text),
    "left_out?": {"*": text},
    "reset_statistics?": flag,
    "blocks?": [{"name": text, "end?": text, "singular_values": [number], "*": number}],
    "pairs?": [{"source": text, "target": text, "*": number}],
    "segments?": [_SEGMENT_ALIGNMENT],
    "*": number,
}
ANALYSIS = {
    **dict.fromkeys(("created?", "command?", "device?", "learned_at?"), text),
    "seed?": whole,
    "versions?": {"*": text},
    "provenance": _PROVENANCE,
    "accuracy?": number,
    "layers": [_LAYER],
    "blocks": [_BLOCK],
    "segments": [_SEGMENT],
    "progress": {"*": _TREND},
    "separation?": _TREND,
    "separation_law?": {"segments": [_SEGMENT_LAW], "samples_per_class?": whole},
    "alignment?": _ALIGNMENT,
    "reference?": _REFERENCE,
    "brenier?": {"points": whole, "skipped?": text},
    **dict.fromkeys(("geodesic_model?", "mufm?", "mufm_given?", "ufm?"), _MODEL),
    "embedded?": {"space?": text, "verdict?": [_SENTENCE], "segments": [_SEGMENT]},
    "trust?": _TRUST,
    "transport_skipped?": text,
    "thresholds?": {"*": number},
    "headline?": _SENTENCE,
    "verdict": [_SENTENCE],
}
SERIES = {
    "axis": text,
    "headline?": _SENTENCE,
    "last_layer?": {"layers": [text], "view": _VIEW},
    "analyses": [{**ANALYSIS, "name": text, "folder?": text}],
}

MANIFEST = {
    "job": {},
    "about": {},
    "rows": [lambda value: isinstance(value, list) and len(value) == 2 and all(map(count, value))],
    "arrays": {
        "*": {
            "file": text,
            "dtype": text,
            "shape": [count],
            "crc32": lambda value: (
                count(value) or (isinstance(value, list) and all(map(count, value)))
            ),
        }
    },
}
TRAJECTORY = {
    "layers": [{"name": text, "stage?": whole}],
    "class_names": [text],
    "settings": _PROVENANCE,
}


class Fault(NamedTuple):
    """A location, such as ``layers[1].name``, at which a record violates its description."""

    location: str
    missing: bool = False


def faults(value: Any, description: Description, location: str = "") -> Iterator[Fault]:
    """Yield the locations at which a value violates its description."""
    if callable(description):
        if not description(value):
            yield Fault(location)
    elif isinstance(description, list):
        if not isinstance(value, list):
            yield Fault(location)
            return
        for i, item in enumerate(value):
            yield from faults(item, description[0], f"{location}[{i}]")
    elif not isinstance(value, dict):
        yield Fault(location)
    else:
        yield from _faults_inside(value, description, f"{location}." if location else "")


def _faults_inside(
    value: Mapping[str, Any], description: Mapping[str, Any], before: str
) -> Iterator[Fault]:
    names = {key.rstrip("?") for key in description}
    for key, inner in description.items():
        name, optional = key.rstrip("?"), key.endswith("?")
        if key == "*":
            for other in value.keys() - names:
                yield from faults(value[other], inner, before + other)
        elif name not in value:
            if not optional:
                yield Fault(before + name, missing=True)
        elif not (optional and value[name] is None):
            yield from faults(value[name], inner, before + name)


def _short_lists(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield lists of the separation law that do not match its layers, and runs of one block."""
    runs = (record.get("alignment") or {}).get("segments") or []
    for k, run in enumerate(runs):
        if len(run["blocks"]) < 2:
            yield Fault(f"alignment.segments[{k}].blocks")
    law = (record.get("separation_law") or {}).get("segments") or []
    for k, segment in enumerate(law):
        for key in ("separation", "compression", "discrimination"):
            if len(segment[key]) != len(segment["layers"]) or len(segment[key]) < 2:
                yield Fault(f"separation_law.segments[{k}].{key}")


def mismatched(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the locations of lists that are valid individually but do not match each other."""
    yield from _short_lists(record)
    segments_by_location = {
        f"segments[{k}]": row for k, row in enumerate(record.get("segments") or [])
    }
    if record.get("last_layer"):
        segments_by_location["last_layer"] = record["last_layer"]
    for location, segment in segments_by_location.items():
        depth = len(segment["layers"])
        if depth < 2:
            yield Fault(f"{location}.layers")
        for key in ("interpolation_gap", "interpolation_time"):
            if segment.get(key) and len(segment[key]) != depth:
                yield Fault(f"{location}.{key}")
        if pairs := segment.get("pairs"):
            size = len(pairs["layers"])
            for key in pairs.keys() - {"layers"}:
                rows = pairs[key]
                if rows is not None and [len(row) for row in rows] != [size] * size:
                    yield Fault(f"{location}.pairs.{key}")
        view = segment.get("view") or {}
        means, dots = view.get("class_means") or [], view.get("points") or []
        classes = len(means[0]) if means else 0
        if view and len(means) != depth:
            yield Fault(f"{location}.view.class_means")
        if dots and len(dots) != depth:
            yield Fault(f"{location}.view.points")
        labels = view.get("labels") or []
        if dots and len(labels) != len(dots[0]):
            yield Fault(f"{location}.view.labels")
        if any(not 0 <= label < classes for label in labels):
            yield Fault(f"{location}.view.labels")
        if end := view.get("end"):
            shapes = [np.shape(end[key]) for key in ("class_means", "points")]
            if shapes != [(classes, shapes[0][1]), (len(labels), shapes[0][1])]:
                yield Fault(f"{location}.view.end")
