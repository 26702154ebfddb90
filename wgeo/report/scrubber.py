"""The animation of a report: class means and samples, with a slider over layers or epochs.

It needs no network connection: the page contains the data, and ``_static/scrubber.js`` the script.
Without scripts, the static figures show the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plots.paths import class_names, over_training
from ..plots.style import CLASS_COLOURS, clean, segment_name

_DIGITS = 4  # enough for a picture a few hundred pixels wide


def scrubber(record: Mapping[str, Any]) -> str:
    """Return the slider as raw HTML in Markdown; empty if the record has no view.

    A segment's ``view`` holds ``class_means`` ([layer][class][2]) and, optionally, ``points``
    ([layer][sample][2]) with ``labels`` ([sample], indices into the classes). In a series they are
    those of the last layer, with epochs in place of layers.
    """
    step = "epoch" if "analyses" in record else "layer"
    if step == "epoch":
        record = over_training(record)
    scenes = [
        _scene(record, segment, i)
        for i, segment in enumerate(record.get("segments") or [])
        if (segment.get("view") or {}).get("class_means")
    ]
    if not scenes:
        return ""
    content = {"step": step, "colours": CLASS_COLOURS, "segments": scenes}
    data = json.dumps(content, separators=(",", ":"))
    for mark in "<>&`":  # nothing in the data can end the script, the tag or the Markdown fence
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    return (
        "```````{raw} html\n"
        f'<div class="wgeo-scrubber"><script type="application/json">{data}</script></div>\n'
        "```````"
    )


def _scene(record: Mapping[str, Any], segment: Mapping[str, Any], index: int) -> dict[str, Any]:
    view = segment["view"]
    scene: dict[str, Any] = {
        "name": segment_name(segment, index),
        "layers": [clean(name) for name in segment.get("layers") or []],
        "classes": class_names(record, view),
        "means": _rounded(view["class_means"]),
    }
    if view.get("points") and view.get("labels"):
        scene |= {"points": _rounded(view["points"]), "labels": view["labels"]}
    return scene


def _rounded(values: Any) -> Any:
    array = np.array(values, dtype=np.float64)
    size = float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) or 1.0
    return np.round(array, _DIGITS - 1 - int(np.floor(np.log10(size)))).tolist()
