"""The animation of a report: class means and samples, with a slider over layers or epochs.

It needs no network connection: the page contains the data, and ``_static/scrubber.js`` the script.
If scripts are disabled, the static figures still show the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..plots.classes import axis_labels, class_names, over_training
from ..plots.style import CLASS_COLORS, clean
from ..storage.record import AnalysisRow, Collapse, Layer, Record, Segment, SeriesRecord
from .markdown import fixed, general, layer_title, percent, raw_html, stage_title

_DIGITS = 4  # enough for a picture a few hundred pixels wide


def scrubber(source: Record | SeriesRecord) -> str:
    """Return the animation as raw HTML in Markdown; empty if the record has no view.

    A segment's view contains ``class_means`` ([layer][class][2]) and may contain ``points``
    ([layer][sample][2]) with ``labels`` ([sample], indices into the classes). A series shows its
    last layer, with epochs in place of layers.
    """
    if isinstance(source, SeriesRecord):
        record, step, metrics = over_training(source), "epoch", _epoch_metrics(source.analyses)
    else:
        record, step, metrics = source, "layer", {}
    scenes = [
        _scene(record, segment, i, metrics or _layer_metrics(record.layers, segment))
        for i, segment in enumerate(record.segments)
        if segment.view.class_means
    ]
    if not scenes:
        return ""
    content = {"step": step, "colors": CLASS_COLORS, "segments": scenes}
    data = json.dumps(content, separators=(",", ":"))
    for character in "<>&`":  # the data must not end the script, the tag or the Markdown fence
        data = data.replace(character, f"\\u{ord(character):04x}")
    return raw_html(
        f'<div class="wgeo-scrubber"><p class="caption">{_CAPTIONS[step]}</p>'
        f'<script type="application/json">{data}</script></div>'
    )


_CONTROLS = "Drag the slider, press Play, or click the picture and press the arrow keys."
_CAPTIONS = {
    "layer": "What to see: a large dot is a class mean and a small dot a sample, at the layer "
    "shown; the faint line is the whole path of the mean. Samples that follow a geodesic move in "
    "straight lines, and so do their class means. If the classes collapse, the samples "
    "gather at their class means: NC1 falls, and the accuracy of the nearest class mean rises. "
    + _CONTROLS,
    "epoch": "What to see: a large dot is a class mean of the last layer and a small dot a sample, "
    "at the epoch shown; the faint line is the whole path of the mean. If the classes collapse "
    "over training, the samples gather at their class means, and NC1 falls; the means move to the "
    f"vertices of a simplex, which is shown in projection to the plane. {_CONTROLS}",
}


def _layer_metrics(layers: Sequence[Layer], segment: Segment) -> dict[str, list[str]]:
    measured = {layer.name: layer.collapse for layer in layers}
    rows = [measured.get(name, Collapse()) for name in segment.layers]
    gaps = segment.interpolation_gap or [None] * len(rows)
    return {
        "NC1": [general(row.measure("nc1")) for row in rows],
        "nearest class mean": [percent(row.measure("ncc_accuracy")) for row in rows],
        "distance from the geodesic / W2 end to end": [fixed(gap) for gap in gaps],
    }


def _epoch_metrics(analyses: Sequence[AnalysisRow]) -> dict[str, list[str]]:
    ends = [row.last_layer for row in analyses]
    return {
        "accuracy": [percent(row.accuracy) for row in analyses],
        "NC1": [general(end.measure("nc1")) for end in ends],
        "nearest class mean": [percent(end.measure("ncc_accuracy")) for end in ends],
    }


def _scene(
    record: Record, segment: Segment, index: int, metrics: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    view = segment.view
    scene: dict[str, Any] = {
        "name": clean(stage_title(segment, index, record.layers)),
        "layers": [clean(layer_title(name)) for name in segment.layers],
        "axes": axis_labels(view),
        "metrics": metrics,
        "classes": class_names(record, view),
        "means": _rounded(view.class_means),
    }
    if view.points and view.labels:
        scene |= {"points": _rounded(view.points), "labels": view.labels}
    return scene


def _rounded(values: Any) -> Any:
    array = np.array(values, dtype=np.float64)
    size = float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) or 1.0
    return np.round(array, _DIGITS - 1 - int(np.floor(np.log10(size)))).tolist()
