"""Panels of the blocks: how far they move the samples, and whether their maps are optimal."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from ..results import defined
from ..storage.record import Block, Record, SeriesRecord
from ..text import counted
from .matrices import draw_cells, write_in_cells
from .series import name_analyses
from .sources import Plot, Row, as_record, as_series, page_figure
from .style import (
    COLORS,
    MEASURED,
    REFERENCE_LINE,
    has_resolution,
    interval_ends,
    layer_axis,
    legend_above,
    log_if_positive,
    new_axes,
    nothing_to_show,
    number,
    numbers,
    range_text,
    require_choice,
    short_names,
    styled,
)

TESTS: dict[str, str] = {
    "asymmetry": "Asymmetry of the Jacobian",
    "min_eigenvalue": "Smallest eigenvalue of the Jacobian's symmetric part",
}
"""Measures of the Brenier test, and their labels."""
_SMALLEST = 1e-6  # the solvers' relative tolerance
_CORRELATION_KEYS = ("corr_score", "corr_low", "corr_high")


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
    layer_axis(ax, [b.target for b in blocks], _block_stages(record), stage_labels=True)
    ax.bar(x, w2, width=0.72, color=COLORS[5], alpha=0.55, lw=0, zorder=2)
    known = np.isfinite(w2) & np.isfinite(lower) & np.isfinite(upper)
    bars = np.maximum([w2 - lower, upper - w2], 0)[:, known]
    style: dict[str, Any] = {"color": MEASURED, "elinewidth": 1.1, "capsize": 2.5}
    ax.errorbar(x[known], w2[known], yerr=bars, fmt="o", ms=3.5, zorder=4, **style)
    handles = [Line2D([], [], marker="o", ms=3.5, color=MEASURED, lw=1.1)]
    names = ["W2, with its bounds"]
    if np.isfinite(paired).any():  # two point clouds without a network have no such pairing
        ax.scatter(x, paired, marker="_", s=90, lw=1.6, color=COLORS[1], zorder=3)
        handles.append(Line2D([], [], marker="_", ms=9, mew=1.6, color=COLORS[1], ls="none"))
        names.append("the network's own pairing")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("distance moved (feature units)")
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

    Values below 1e-6, the tolerance of the solvers, are drawn at the lower edge. Crosses show 1
    minus the highest upper bound of the null maps' scores. Null maps have the displacements of the
    block, but assign them to the wrong samples or rotate them. A marker is hollow if the block's
    score is not clearly above theirs; the score is then not evidence of an optimal map.

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


def _draw_scores(
    ax: Axes,
    record: Record,
    score: np.ndarray,
    solid: np.ndarray,
    null: np.ndarray | None = None,
) -> list[Line2D]:
    """Draw how far the blocks' scores are below 1, on a logarithmic axis; return legend handles."""
    x = np.arange(len(score))
    layer_axis(ax, [block.target for block in record.blocks], _block_stages(record))
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
    return [Line2D([], [], ls="none", **style) for _, _, style in drawn]


def _block_stages(record: Record) -> list[Any]:
    """Return the stage of each block's output layer."""
    stages = {layer.name: layer.stage for layer in record.layers}
    return [stages.get(block.target) for block in record.blocks]


@styled
def gradient_maps(record: Any, test: str = "asymmetry", ax: Axes | None = None) -> Axes:
    """Draw the Brenier test of every block: is its map the gradient of a convex function?

    The Jacobian of an optimal map has asymmetry 0 and no negative eigenvalue. Values are means over
    points, with 95 % intervals.

    Parameters
    ----------
    test : str
        A key of `TESTS`.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("mlp", num_classes=2, in_channels=1, image_size=2, width=4, depth=2)
    >>> images = torch.randn(20, 1, 2, 2), torch.arange(20) % 2
    >>> fast = {"bootstrap": 0, "reference": "none", "alignment": 0, "mufm": False}
    >>> ax = wgeo.plots.gradient_maps(wgeo.analyze(net, images, brenier=2, **fast))
    >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_title(loc="left")
    (['blocks.0', 'blocks.1'], 'Asymmetry of the Jacobian')
    """
    record = as_record(record)
    require_choice(test, TESTS, "test")
    ax = new_axes(ax, 7.2, 2.6)
    blocks = [block for block in record.blocks if block.brenier]
    if not blocks:
        return nothing_to_show(ax, "This record has no Brenier test.")
    at = np.arange(len(blocks))
    series = [(test, MEASURED, "o")]
    if test == "asymmetry":
        series.append(("displacement_asymmetry", COLORS[1], "s"))
    handles, curves = [], []
    for key, color, marker in series:
        values = numbers([block.brenier.measure(key) for block in blocks])
        low, high = interval_ends(block.brenier.interval(key) for block in blocks)
        ax.vlines(at, low, high, color=color, lw=1.3, alpha=0.7)
        handles += ax.plot(at, values, ls="none", ms=4.5, color=color, marker=marker, zorder=3)
        curves.append(values)
    if test == "min_eigenvalue":
        lowest = numbers([block.brenier.lowest_eigenvalue for block in blocks])
        handles += ax.plot(at, lowest, ls="none", ms=9, mew=1.4, color=MEASURED, marker="_")
        ax.axhline(0.0, **REFERENCE_LINE)
        names = ["mean over points", "lowest of all points"]
    else:
        names = ["the map", "its displacement alone"]
        log_if_positive(ax, *curves)
    layer_axis(ax, [block.target for block in blocks])
    ax.set_title(TESTS[test])
    legend_above(ax, handles, names)
    return ax


@styled
def block_distances(series: Any, ax: Axes | None = None) -> Axes:
    """Draw how the length of a path is divided among its blocks, one column per analysis.

    A cell is the W2 distance over which a block (row) moves the centered features, divided by the
    sum over the blocks of its stage::

        W_l / sum_k W_k,    W_l^2 = W2(mu_l, mu_{l+1})^2 - ||m_{l+1} - m_l||^2

    with mu_l the distribution of the features at layer l and m_l its mean.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(8) % 2)
    >>> record = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False).record
    >>> series = wgeo.analysis.Series.of({"first": record, "second": record})
    >>> ax = wgeo.plots.block_distances(series)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['first', 'second']
    """
    series = as_series(series)
    ax = new_axes(ax, 6.0, 3.6)
    names = _blocks(series)
    if not names:
        return nothing_to_show(ax, "These analyses do not have the same blocks.")
    shares = _shares(series)
    largest = float(np.nanmax(shares, initial=0.0)) or 1.0
    bar = {"label": "% of its stage's length"}
    limits: dict[str, Any] = {"vmin": 0, "vmax": 100 * largest}
    draw_cells(ax, 100 * shares, short_names(names, 18), (), bar=bar, aspect="auto", **limits)
    name_analyses(ax, series, range(shares.shape[1]))
    ax.set_xlabel("epoch" if series.axis == "epoch" else "")
    dark = 0.6 * largest
    write_in_cells(ax, shares, lambda i, j: f"{100 * shares[i, j]:.0f}", white_up_to=dark)
    return ax


def _blocks(series: SeriesRecord) -> list[str]:
    """Return the names of the blocks; none unless all analyses have the same."""
    named = [tuple(b.target for b in row.blocks) for row in series.analyses]
    return list(named[0]) if len(set(named)) == 1 else []


def _shares(series: SeriesRecord) -> np.ndarray:
    """Return the share of every block (rows) in its stage's length, one column per analysis."""
    columns = []
    for analysis in series.analyses:
        lengths: dict[int | None, float] = defaultdict(float)
        for block in analysis.blocks:
            lengths[block.stage] += _centered_distance(block)
        shares = [
            _centered_distance(block) / length if (length := lengths[block.stage]) > 0 else np.nan
            for block in analysis.blocks
        ]
        columns.append(shares)
    return np.array(columns).T


def _centered_distance(block: Block) -> float:
    """Return W2 between the centered layers, sqrt(W2^2 - |shift of the mean|^2)."""
    shift = number(block.shift_share) * number(block.paired) ** 2
    return float(np.sqrt(max(number(block.distance) ** 2 - shift, 0.0)))


# --- figures -------------------------------------------------------------------------------------


def distances_plot(record: Record) -> Plot | None:
    blocks = record.blocks
    if not blocks:
        return None
    has_correlations = any(block.corr_score for block in blocks)
    functions = [distances, *[correlation_scores] * has_correlations, ot_scores]
    panels = [partial(function, record) for function in functions]
    height, ratios = 1.4 + 2.0 * len(panels), [3, *[2] * (len(panels) - 1)]

    def rows() -> list[Row]:
        # Computing times are left out, so that equal analyses give equal files.
        return [
            {
                **block.plain("seconds"),
                **dict(zip(_CORRELATION_KEYS, block.corr_score or (None,) * 3, strict=True)),
                "highest_null": block.highest_null,
            }
            for block in blocks
        ]

    correlations = (
        "In the middle: 1 minus the correlation score (0 for an optimal map); crosses: 1 minus an "
        "upper bound of the scores of null maps, which assign the same displacements to the wrong "
        "samples or rotate them. A hollow score is not clearly above those of null maps, so it is "
        "not evidence. "
        if has_correlations
        else ""
    )
    return Plot(
        "distances",
        "Transport by block",
        "Above: the Wasserstein distance W2 between the features before and after each block, "
        "with its bounds, and the root mean squared distance by which the network itself moves the "
        f"samples. {correlations}Below: 1 minus the OT score; the OT score is the squared ratio of "
        "the two distances above. Hollow points have a resolution below 1/2 and are not evidence, "
        "since the OT score is near 1 for almost any map that moves the samples little. Axes of "
        "scores are logarithmic: the lower a point, the nearer the map is to an optimal one. "
        "Values below 1e-6, which the solvers do not resolve, are at the lower edge.",
        f"W2 of {counted(len(blocks), 'block')}{range_text(blocks, 'distance')}; "
        f"OT score{range_text(blocks, 'ot_score')}.",
        lambda: page_figure(height, panels, height_ratios=ratios),
        rows,
    )


def gradient_maps_plot(record: Record) -> Plot | None:
    tested = [block for block in record.blocks if block.brenier]
    if not tested:
        return None

    def rows() -> list[Row]:
        return [
            {
                "block": block.target,
                **block.brenier.plain(),
                **{
                    f"{name}_{end}": value
                    for name, ends in block.brenier.intervals.items()
                    for end, value in zip(("low", "high"), ends or (), strict=False)
                },
            }
            for block in tested
        ]

    return Plot(
        "gradient-maps",
        "Is each block the gradient of a convex function?",
        f"The Jacobian of each block, on unpooled features, at {tested[0].brenier.points} images. "
        "Above: squared norm of its antisymmetric part divided by that of its symmetric part: 0 "
        "for a gradient, about 1 for a random matrix. Below: the smallest eigenvalue of the "
        "symmetric part; if it is negative, the block is not an optimal map, whatever its OT "
        "score.",
        f"Brenier test of {counted(len(tested), 'block')}.",
        lambda: page_figure(5.0, [partial(gradient_maps, record, test) for test in TESTS]),
        rows,
    )


def block_distances_plot(series: SeriesRecord) -> Plot | None:
    count = len(_blocks(series))
    if count < 2:
        return None
    over = "over training" if series.axis == "epoch" else "across networks"

    def rows() -> list[Row]:
        return [
            {
                "name": analysis.name,
                "epoch": analysis.provenance.epoch,
                "block": block.target,
                "stage": block.stage,
                "distance": block.distance,
                "share_of_length": defined(share),
            }
            for analysis, column in zip(series.analyses, _shares(series).T, strict=True)
            for block, share in zip(analysis.blocks, column, strict=True)
        ]

    return Plot(
        "block-distances",
        f"Which blocks move the features, {over}?",
        "Percentage that each block (row) contributes to the length of its stage's path: the W2 "
        "distance over which it moves the centered features, divided by the sum over the blocks "
        "of the stage. On a geodesic with constant speed, all percentages of a stage are equal; "
        "one bright row means that a single block does most of the work.",
        f"Share of every block in its stage's length, {over}.",
        lambda: page_figure(1.4 + 0.26 * count, [partial(block_distances, series)]),
        rows,
    )
