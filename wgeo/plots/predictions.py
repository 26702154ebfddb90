"""Models fitted to a network: how their predictions are drawn, and the panel of their errors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..results import defined
from ..storage.record import Predicted, Record
from ..text import stage_number
from .sources import Plot, Row, as_record, page_figure
from .style import (
    COLORS,
    layer_axis,
    legend_below,
    new_axes,
    nothing_to_show,
    numbers,
    require_choice,
    styled,
)

MODELS: dict[str, tuple[str, str, str, Any]] = {
    "geodesic_model": ("geodesic model", COLORS[1], "s", (0, (5, 2))),
    "mufm": ("MUFM", COLORS[2], "^", (0, (1.5, 1.5))),
    "mufm_given": ("MUFM, network's classifier", COLORS[3], "D", (0, (4, 1.5, 1, 1.5))),
    "ufm": ("plain UFM", COLORS[6], "v", "none"),
}
"""Models of a record: name, color, marker, dashes."""

ERRORS: dict[str, str] = {
    "missed": "Unexplained variance of the layer",
    "w2": "W2 to the network's features",
}
"""Errors of a model's features, and the titles of their panels."""
_TIME_TOLERANCE = 1e-9  # fitted times that differ by less are considered equal


def models_in(record: Record) -> list[str]:
    return [key for key in MODELS if record.model(key).layers]


def model_rows(record: Record, model: str) -> list[Predicted]:
    """Return a model's row for every layer, empty if the model does not predict the layer."""
    rows = {row.name: row for row in record.model(model).layers}
    return [rows.get(layer.name, Predicted.of({})) for layer in record.layers]


def model_style(key: str) -> dict[str, Any]:
    _, color, marker, dashes = MODELS[key]
    line = {"color": color, "ls": dashes, "lw": 1.3}
    return line | {"marker": marker, "ms": 3.2, "mfc": "white", "mew": 0.9}


def model_handles(keys: Iterable[str]) -> tuple[list[Line2D], list[str]]:
    keys = list(keys)
    return [Line2D([], [], **model_style(key)) for key in keys], [MODELS[key][0] for key in keys]


def split_by_stage(record: Record, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and values of a line over layers, with gaps between stages."""
    stages = [layer.stage for layer in record.layers]
    positions = np.arange(len(values), dtype=float)
    cuts = [
        i
        for i in range(1, len(stages))
        if stages[i] != stages[i - 1] and None not in (stages[i], stages[i - 1])
    ]
    return np.insert(positions, cuts, np.nan), np.insert(values, cuts, np.nan)


def in_order(record: Record, model: str) -> np.ndarray:
    """Return a mask of the layers at which a model is drawn.

    A layer's fitted time is the time at which the model's path is nearest to it. If these times
    decrease with depth in a stage, the network does not follow the model there, and the model is
    not drawn in this stage.
    """
    times = numbers([row.time for row in model_rows(record, model)])
    stages = [layer.stage for layer in record.layers]
    drawn = np.ones(len(stages), bool)
    for stage in {stage for stage in stages if stage is not None}:
        members = np.array([each == stage for each in stages])
        fitted = times[members][np.isfinite(times[members])]
        drawn[members] = not (np.diff(fitted) < -_TIME_TOLERANCE).any()
    return drawn


def not_drawn(record: Record) -> str:
    """Return a note for a caption: the models that some stages lack, or an empty text."""
    stages = np.array([layer.stage for layer in record.layers])
    notes = []
    for key in models_in(record):
        missing = sorted(set(stages[~in_order(record, key)]))
        if missing:
            numbered = ", ".join(str(stage_number(stage)) for stage in missing)
            notes.append(f"{MODELS[key][0]} in stage{'s' * (len(missing) > 1)} {numbered}")
    reason = "Not drawn, because the fitted times decrease with depth"
    return f"{reason}: {'; '.join(notes)}." if notes else ""


@styled
def model_errors(record: Any, measure: str = "missed", ax: Axes | None = None) -> Axes:
    """Draw the errors of every model's features over depth.

    Parameters
    ----------
    measure : {"missed", "w2"}
        ``missed``: the fraction of a layer's variance that is unexplained. ``w2``: W2 between the
        predicted and the actual features, divided by the square root of the variance. Both are 0
        for a perfect prediction, and about 1 if every sample is predicted at the layer's mean.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (0.3, 0.2, 0.1)]
    >>> result = wgeo.compare(wgeo.Trajectory.from_arrays(layers, labels), mufm=False)
    >>> ax = wgeo.plots.model_errors(result)
    >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_title(loc="left")
    (['layer0', 'layer1', 'layer2'], 'Unexplained variance of the layer')
    """
    record = as_record(record, "Comparison")
    require_choice(measure, ERRORS, "error")
    ax = new_axes(ax)
    layers = record.layers
    shown = _shown(record, measure)
    ax.set_title(ERRORS[measure])
    if not shown:
        return nothing_to_show(ax, not_drawn(record) or "This record has no model features.")
    layer_axis(ax, [layer.name for layer in layers], [layer.stage for layer in layers])
    for key, error in shown.items():
        ax.plot(*split_by_stage(record, error), **model_style(key))
    ax.set_ylim(0, 1.08 * max(0.1, *(float(np.nanmax(error)) for error in shown.values())))
    legend_below(ax, *model_handles(shown))
    return ax


def _errors(record: Record, model: str, measure: str) -> np.ndarray:
    """Return a model's error at every layer, or NaN if the model does not predict the layer."""
    return numbers([layer.measure(measure) for layer in model_rows(record, model)])


def _shown(record: Record, measure: str) -> dict[str, np.ndarray]:
    """Return the errors of each model that is drawn; NaN in stages where it is not."""
    errors = {
        key: np.where(in_order(record, key), _errors(record, key, measure), np.nan)
        for key in models_in(record)
    }
    return {key: error for key, error in errors.items() if np.isfinite(error).any()}


def model_errors_plot(record: Record) -> Plot | None:
    keys = models_in(record)
    errors = {(k, m): _errors(record, k, m) for k in keys for m in ERRORS}
    if not any(np.isfinite(error).any() for error in errors.values()):
        return None
    panels = [partial(model_errors, record, measure) for measure in ERRORS]

    def legend() -> tuple[list[Line2D], list[str]]:
        shown = {key for measure in ERRORS for key in _shown(record, measure)}
        return model_handles(key for key in keys if key in shown)

    def rows() -> list[Row]:
        return [
            {
                "name": layer.name,
                **{f"{k}.{m}": defined(errors[k, m][i]) for k in keys for m in ERRORS},
                **{f"{k}.time": model_rows(record, k)[i].time for k in keys},
            }
            for i, layer in enumerate(record.layers)
        ]

    return Plot(
        "models",
        "Errors of the models",
        "Difference between each model's features and the network's: sample by sample (left: the "
        "unexplained fraction of a layer's variance), and as distributions (right: W2 divided by "
        "the root of the variance). 0 is a perfect prediction. The geodesic model is given the "
        "first and last layer of every segment. Each stage has a separate line. "
        f"{not_drawn(record)}".rstrip(),
        "Errors of " + ", ".join(MODELS[key][0] for key in keys) + " at every layer.",
        lambda: page_figure(
            3.6, panels, legend, columns=2, loc="outside upper center", max_columns=2
        ),
        rows,
    )
