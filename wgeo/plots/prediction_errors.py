"""Panels of the errors of the models' predictions, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..results import defined
from ..storage.record import Record
from .depth import (
    MODELS,
    in_order,
    model_rows,
    model_style,
    models_in,
    not_drawn,
    split_by_stage,
)
from .plot import Plot, Row
from .sources import as_record
from .style import (
    layer_axis,
    legend_below,
    legend_of_figure,
    new_axes,
    new_figure,
    nothing_to_show,
    numbers,
    require_choice,
    stage_bands,
    styled,
)

ERRORS: dict[str, str] = {
    "missed": "Unexplained variance of the layer",
    "w2": "W2 to the network's features",
}
"""Errors of a model's features, and the titles of their panels."""


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
    stage_bands(ax, [layer.stage for layer in layers])
    for key, error in shown.items():
        ax.plot(*split_by_stage(record, error), **model_style(key))
    ax.set_ylim(0, 1.08 * max(0.1, *(float(np.nanmax(error)) for error in shown.values())))
    layer_axis(ax, [layer.name for layer in layers], labels=True)
    legend_below(ax, *_handles(shown))
    return ax


def model_error(record: Record, model: str, measure: str) -> np.ndarray:
    """Return a model's error at every layer, or NaN if the model does not predict the layer."""
    return numbers([layer.measure(measure) for layer in model_rows(record, model)])


def _shown(record: Record, measure: str) -> dict[str, np.ndarray]:
    """Return the errors of each model that is drawn; NaN in stages that are not drawn."""
    errors = {
        key: np.where(in_order(record, key), model_error(record, key, measure), np.nan)
        for key in models_in(record)
    }
    return {key: error for key, error in errors.items() if np.isfinite(error).any()}


def models_plot(record: Record) -> Plot | None:
    keys = models_in(record)
    errors = {(k, m): model_error(record, k, m) for k in keys for m in ERRORS}
    if not any(np.isfinite(error).any() for error in errors.values()):
        return None

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 3.6)
        for measure, ax in zip(ERRORS, figure.subplots(1, len(ERRORS)), strict=True):
            model_errors(record, measure, ax)
        shown = {key for measure in ERRORS for key in _shown(record, measure)}
        handles = _handles([key for key in keys if key in shown])
        legend_of_figure(figure, *handles, loc="outside upper center", max_columns=2)
        return figure

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
        draw,
        rows,
    )


def _handles(keys: Iterable[str]) -> tuple[list[Line2D], list[str]]:
    return [Line2D([], [], **model_style(key)) for key in keys], [MODELS[key][0] for key in keys]
