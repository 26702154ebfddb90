"""The panel of the variability within each single class over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..results import defined
from ..storage.record import Record
from ..text import counted
from .paths import class_style
from .plot import Plot, Row
from .sources import as_record
from .style import (
    MEASURED,
    class_name,
    layer_axis,
    legend,
    legend_of_figure,
    log_if_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    numbers,
    stage_bands,
    styled,
)

_MAX_CURVES = 20  # with more classes, bands show how they are distributed


@styled
def class_variability(record: Any, ax: Axes | None = None) -> Axes:
    """Draw the variability within each class, var_k / tr Σb, over depth.

    It is 0 if the class has collapsed to its mean. With more than 20 classes, the line is their
    median, and the bands contain the middle half and all of the classes.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(20) % 2
    >>> x = np.random.default_rng(0).normal(size=(20, 3)) * (1 + 2 * labels)[:, None]
    >>> collapse = wgeo.collapse(wgeo.Trajectory.from_arrays([x, 2 * x], labels))
    >>> [round(v) for v in collapse.layers[0].class_variability]  # class 1 has collapsed least
    [2, 18]
    >>> ax = wgeo.plots.class_variability(collapse)
    """
    record = as_record(record, "Collapse")
    ax = new_axes(ax, 7.2, 3.2)
    values = _values(record)
    if not np.isfinite(values).any():
        return nothing_to_show(ax, "This record has no variability of single classes.")
    _draw(ax, record, values)
    handles, names = _handles(record, values.shape[1])
    legend(ax, handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def _values(record: Record) -> np.ndarray:
    """Return the variability of every layer (row) and class; NaN if it is undefined."""
    rows = [numbers(layer.collapse.class_variability) for layer in record.layers]
    classes = max(map(len, rows), default=0)
    complete = [row if len(row) == classes else np.full(classes, np.nan) for row in rows]
    return np.array(complete).reshape(len(rows), classes)


def _draw(ax: Axes, record: Record, values: np.ndarray) -> None:
    layers = record.layers
    x = np.arange(len(layers))
    stage_bands(ax, [layer.stage for layer in layers])
    # Layers without a stage, such as the image, are not part of the path.
    unstaged = np.array([layer.stage is None for layer in layers])
    on_path = np.where(unstaged[:, None], np.nan, values)
    if values.shape[1] <= _MAX_CURVES:
        for k in range(values.shape[1]):
            style = {**class_style(k), "ms": 3.5}
            ax.plot(x, on_path[:, k], lw=1.3, **style)
            ax.plot(x[unstaged], values[unstaged, k], mfc="white", ls="none", **style)
    else:
        low, first, median, third, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), axis=1)
        shade: dict[str, Any] = {"color": MEASURED, "lw": 0}
        for ends, alpha in (((low, high), 0.15), ((first, third), 0.3)):
            bottom, top = (np.where(unstaged, np.nan, end) for end in ends)
            ax.fill_between(x, bottom, top, alpha=alpha, **shade)
            ax.vlines(x[unstaged], *(end[unstaged] for end in ends), color=MEASURED, lw=1)
        ax.plot(x, np.where(unstaged, np.nan, median), color=MEASURED, marker="o", ms=3.5)
        ax.plot(x[unstaged], median[unstaged], color=MEASURED, marker="o", ms=3.5, ls="none")
    log_if_positive(ax, values.ravel())
    ax.set_ylabel("var of the class / tr Σb")
    layer_axis(ax, [layer.name for layer in layers])


def _handles(record: Record, classes: int) -> tuple[list[Line2D], list[str]]:
    if classes > _MAX_CURVES:
        names = [f"median of {classes} classes", "middle half", "all classes"]
        widths: list[dict[str, Any]] = [
            {"marker": "o", "ms": 3.5},
            *({"lw": 6, "alpha": a} for a in (0.3, 0.15)),
        ]
        return [Line2D([], [], color=MEASURED, **style) for style in widths], names
    handles = [Line2D([], [], lw=1.3, **{**class_style(k), "ms": 3.5}) for k in range(classes)]
    return handles, _names(record, classes)


def _names(record: Record, count: int) -> list[str]:
    """Return the names of the `count` classes that occur, or numbers if it is unknown which do."""
    names, own = record.provenance.class_names, record.json.get("classes")
    known: list[Sequence[int]] = [own] if isinstance(own, list) else []  # a `Collapse` has them
    known += [segment.view.classes for segment in record.segments]
    for classes in (*known, range(len(names))):  # otherwise, all that have a name
        if len(classes) == count:
            return [class_name(names, k) for k in classes]
    return [f"class {k + 1} of {count}" for k in range(count)]


def class_variability_plot(record: Record) -> Plot | None:
    values = _values(record)
    if not np.isfinite(values).any():
        return None

    @styled
    def draw() -> Figure:
        handles, names = _handles(record, values.shape[1])
        figure = new_figure(7.2, 3.6)
        _draw(figure.add_subplot(), record, values)
        legend_of_figure(figure, handles, names)
        return figure

    def rows() -> list[Row]:
        names = _names(record, values.shape[1])
        return [
            {"layer": layer.name, "class": name, "variability": defined(value)}
            for layer, row in zip(record.layers, values, strict=True)
            for name, value in zip(names, row, strict=True)
        ]

    spread = values[-1].max() / values[-1].min() if (values[-1] > 0).all() else np.nan
    last = f"; in the last layer, the largest is {spread:.3g} times the smallest"
    return Plot(
        "class-variability",
        "Collapse of single classes",
        "The variance within each class, var_k, divided by the variance between class means, "
        "tr Σb, over depth: 0 if the class has collapsed to its mean. The mean over all samples "
        "is tr Σw / tr Σb. Open markers: layers outside the blocks. The class whose curve ends "
        "highest has collapsed least.",
        f"Variability of {values.shape[1]} classes over {counted(len(values), 'layer')}"
        f"{last if np.isfinite(spread) else ''}.",
        draw,
        rows,
    )
