"""Panels of transport: how far blocks move the samples, and whether their maps are optimal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import (
    COLORS,
    MEASURED,
    REFERENCE,
    as_record,
    has_resolution,
    highest_null,
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

    Bars show W2, error bars the bounds ``[lower, upper]``, and dashes ``paired``, the root mean
    squared distance by which the block moves the samples. If dash and bar meet, the block's map is
    optimal on the samples. Units are those of the features.

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
    blocks = record.get("blocks") or []
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    x = np.arange(len(blocks))
    w2, lower, upper, paired = (
        numbers([b.get(key) for b in blocks]) for key in ("distance", "lower", "upper", "paired")
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
    if pairing := bool(np.isfinite(paired).any()):
        ax.scatter(x, paired, marker="_", s=90, lw=1.6, color=COLORS[1], zorder=3)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("distance moved (feature units)")
    layer_axis(ax, [b.get("target") for b in blocks])
    handles = [
        Line2D([], [], marker="o", ms=3.5, color=MEASURED, lw=1.1),
        Line2D([], [], marker="_", ms=9, mew=1.6, color=COLORS[1], ls="none"),
    ]
    names = ["W2, with its bounds", "the network's own pairing"]
    count = 2 if pairing else 1  # two point clouds without a network have no such pairing
    legend_above(ax, handles[:count], names[:count], gap=11)
    return ax


@styled
def ot_scores(record: Any, ax: Axes | None = None) -> Axes:
    """Draw W2^2 / paired^2 of every block, which is 1 if the network's own pairing is optimal.

    Markers are hollow if the resolution is below 1/2 or undefined, since a score of 1 is then not
    evidence of an optimal map.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.ot_scores(wgeo.straightness(traj, bootstrap=0))
    >>> ax.get_ylabel()
    'OT score'
    """
    record = as_record(record, "Straightness", "BlockTransport")
    ax = new_axes(ax, 7.2, 2.4)
    blocks = record.get("blocks") or []
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    x = np.arange(len(blocks))
    score = numbers([b.get("ot_score") for b in blocks])
    solid = np.array([has_resolution(b) for b in blocks])
    stage_bands(ax, _block_stages(record))
    ax.axhline(1.0, color=REFERENCE, lw=0.8, ls=(0, (4, 3)), zorder=1)
    style: dict[str, Any] = {"s": 24, "edgecolors": MEASURED, "linewidths": 1.2, "zorder": 3}
    ax.scatter(x[solid], score[solid], color=MEASURED, **style)
    ax.scatter(x[~solid], score[~solid], facecolors="white", **style)
    span = max(1.0 - np.nanmin(score, initial=1.0), 0.01)
    ax.set_ylim(1.0 - 1.15 * span, 1.0 + 0.08 * span)
    ax.set_ylabel("OT score")
    layer_axis(ax, [b.get("target") for b in blocks])
    dot: dict[str, Any] = {"marker": "o", "ms": 5, "color": MEASURED, "ls": "none", "mew": 1.2}
    handles = [Line2D([], [], **dot), Line2D([], [], mfc="white", **dot)]
    legend_above(ax, handles, ["resolution ≥ 1/2", "resolution < 1/2: not evidence"])
    return ax


@styled
def correlation_scores(record: Any, ax: Axes | None = None) -> Axes:
    """Draw the correlation score of every block, with the highest score of its null maps (crosses).

    The score is 1 for an optimal map. A marker is hollow if null maps (the same displacements
    assigned to the wrong samples) score about as high, so that the score is not evidence.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.correlation_scores(wgeo.straightness(traj, bootstrap=0))
    >>> ax.get_ylabel()
    'correlation score'
    """
    record = as_record(record, "Straightness", "BlockTransport")
    ax = new_axes(ax, 7.2, 2.4)
    blocks = record.get("blocks") or []
    if not blocks:
        return nothing_to_show(ax, "This record has no blocks.")
    x = np.arange(len(blocks))
    score = numbers([(b.get("corr_score") or [None])[0] for b in blocks])
    if not np.isfinite(score).any():
        return nothing_to_show(ax, "This record has no correlation scores.")
    null = numbers([highest_null(b) for b in blocks])
    solid = np.array([bool(b.get("power")) for b in blocks])
    stage_bands(ax, _block_stages(record))
    ax.axhline(1.0, color=REFERENCE, lw=0.8, ls=(0, (4, 3)), zorder=1)
    cross: dict[str, Any] = {"marker": "x", "color": COLORS[1], "zorder": 2}
    ax.scatter(x, null, s=18, lw=1.1, **cross)
    dot: dict[str, Any] = {"marker": "o", "color": MEASURED, "ls": "none", "mew": 1.2, "zorder": 3}
    ax.plot(x[solid], score[solid], ms=5, **dot)
    ax.plot(x[~solid], score[~solid], ms=5, mfc="white", **dot)
    lowest = min(np.nanmin(score), np.nanmin(null, initial=1.0))
    ax.set_ylim(1.0 - 1.15 * max(1.0 - lowest, 0.01), 1.0 + 0.08 * max(1.0 - lowest, 0.01))
    ax.set_ylabel("correlation score")
    layer_axis(ax, [b.get("target") for b in blocks])
    handles = [
        Line2D([], [], ms=5, **dot),
        Line2D([], [], ms=5, mfc="white", **dot),
        Line2D([], [], ms=5, ls="none", **cross),
    ]
    legend_above(ax, handles, ["clearly above", "not clearly above", "the highest null map"])
    return ax


def _block_stages(record: Mapping[str, Any]) -> list[Any]:
    """Return each block's stage, the stage of its output layer."""
    stages = {layer.get("name"): layer.get("stage") for layer in record.get("layers") or []}
    return [stages.get(block.get("target")) for block in record.get("blocks") or []]
