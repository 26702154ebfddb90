"""Panels of transport: how far blocks move the samples, and whether their maps are optimal."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from ..storage.record import Record
from .sources import as_record
from .style import (
    COLORS,
    MEASURED,
    has_resolution,
    layer_axis,
    legend_above,
    new_axes,
    nothing_to_show,
    numbers,
    stage_bands,
    styled,
)


@styled
def distances(record: Any, ax: Axes | None = None) -> Axes:
    """Draw W2 of every block with its bounds, and the distance under the network's own pairing.

    Bars show W2, and error bars its bounds. A dash shows the root mean squared distance by which
    the block moves the samples. If dash and bar meet, the block's map is optimal on these samples.
    Distances are in units of the features.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + [1, 2, 2], x], np.arange(20) % 2)
    >>> ax = wgeo.plots.distances(wgeo.straightness(traj, bootstrap=0))
    >>> [round(float(bar.get_height()), 6) for bar in ax.patches]
    [3.0, 3.0]
    """
    record = as_record(record, "Straightness", "BlockTransport", "TransportResult")
    ax = new_axes(ax, 7.2, 3.2)
    blocks = record.blocks
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    x = np.arange(len(blocks))
    w2, lower, upper, paired = (
        numbers([block.measure(key) for block in blocks])
        for key in ("distance", "lower", "upper", "paired")
    )
    stage_bands(ax, _block_stages(record), labels=True)
    ax.bar(x, w2, width=0.72, color=COLORS[5], alpha=0.55, lw=0, zorder=2)
    defined = np.isfinite(w2) & np.isfinite(lower) & np.isfinite(upper)
    below, above = np.maximum(w2 - lower, 0)[defined], np.maximum(upper - w2, 0)[defined]
    ax.errorbar(
        x[defined],
        w2[defined],
        yerr=[below, above],
        fmt="o",
        ms=3.5,
        color=MEASURED,
        elinewidth=1.1,
        capsize=2.5,
        zorder=4,
    )
    handles = [Line2D([], [], marker="o", ms=3.5, color=MEASURED, lw=1.1)]
    names = ["W2, with its bounds"]
    if np.isfinite(paired).any():  # two point clouds without a network have no such pairing
        ax.scatter(x, paired, marker="_", s=90, lw=1.6, color=COLORS[1], zorder=3)
        handles.append(Line2D([], [], marker="_", ms=9, mew=1.6, color=COLORS[1], ls="none"))
        names.append("the network's own pairing")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("distance moved (feature units)")
    layer_axis(ax, [b.target for b in blocks])
    legend_above(ax, handles, names, gap=11)
    return ax


@styled
def ot_scores(record: Any, ax: Axes | None = None) -> Axes:
    """Draw 1 - W2^2 / paired^2 of every block on a logarithmic axis; 0 for an optimal pairing.

    Values below 1e-6, the tolerance of the solvers, are drawn at the lower edge. A marker is hollow
    if the resolution is below 1/2 or undefined: a score of 1 is then not evidence of an optimal
    map.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.ot_scores(wgeo.straightness(traj, bootstrap=0))
    >>> ax.get_ylabel()
    '1 − OT score'
    """
    record = as_record(record, "Straightness", "BlockTransport")
    ax = new_axes(ax, 7.2, 2.4)
    blocks = record.blocks
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    solid = np.array([has_resolution(b) for b in blocks])
    handles = _draw_scores(ax, record, numbers([b.ot_score for b in blocks]), solid)
    ax.set_ylabel("1 − OT score")
    legend_above(ax, handles, ["resolution ≥ 1/2", "resolution < 1/2: not evidence"])
    return ax


@styled
def correlation_scores(record: Any, ax: Axes | None = None) -> Axes:
    """Draw 1 - correlation score of every block on a logarithmic axis; 0 for an optimal map.

    Values below 1e-6, the tolerance of the solvers, are drawn at the lower edge. Crosses show the
    same for the highest upper bound of the scores of the block's null maps. These have the block's
    displacements, but assign them to the wrong samples or rotate them. A marker is hollow if the
    block's score is not clearly above theirs, and is then not evidence of an optimal map.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.correlation_scores(wgeo.straightness(traj, bootstrap=0))
    >>> ax.get_ylabel()
    '1 − correlation score'
    """
    record = as_record(record, "Straightness", "BlockTransport")
    ax = new_axes(ax, 7.2, 2.4)
    blocks = record.blocks
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    score = numbers([b.measure("corr_score") for b in blocks])
    if not np.isfinite(score).any():
        return nothing_to_show(ax, "This record has no correlation scores.")
    null = numbers([b.highest_null for b in blocks])
    handles = _draw_scores(ax, record, score, np.array([bool(b.power) for b in blocks]), null)
    ax.set_ylabel("1 − correlation score")
    legend_above(
        ax, handles, ["clearly above null maps", "not clearly above", "upper bound of null maps"]
    )
    return ax


_SMALLEST = 1e-6  # the solvers' relative tolerance


def _draw_scores(
    ax: Axes,
    record: Record,
    score: np.ndarray,
    solid: np.ndarray,
    null: np.ndarray | None = None,
) -> list[Line2D]:
    """Draw how far the blocks' scores are below 1, on a logarithmic axis; return legend handles."""
    x = np.arange(len(score))
    stage_bands(ax, _block_stages(record))
    dot: dict[str, Any] = {"marker": "o", "color": MEASURED, "ms": 5, "mew": 1.2, "zorder": 3}
    cross: dict[str, Any] = {"marker": "x", "color": COLORS[1], "ms": 4, "zorder": 4}
    drawn = [(score, solid, dot), (score, ~solid, {**dot, "mfc": "white"})]
    if null is not None:
        drawn.append((null, np.ones(len(null), bool), cross))
    ax.set_yscale("log")
    for values, chosen, style in drawn:
        below_one = np.maximum(1 - values[chosen], _SMALLEST)
        ax.plot(x[chosen], below_one, ls="none", clip_on=False, in_layout=False, **style)
    largest = 1 - np.nanmin(np.concatenate([values for values, _, _ in drawn]), initial=0.999)
    ax.set_ylim(_SMALLEST, 1.5 * largest)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    layer_axis(ax, [block.target for block in record.blocks])
    return [Line2D([], [], ls="none", **style) for _, _, style in drawn]


def _block_stages(record: Record) -> list[Any]:
    """Return each block's stage, the stage of its output layer."""
    stages = {layer.name: layer.stage for layer in record.layers}
    return [stages.get(block.target) for block in record.blocks]
