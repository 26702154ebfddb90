"""The panel of each block's share in the length of a path, over training or across networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results import defined
from ..storage.record import Block, SeriesRecord
from .matrices import color_bar, frame_cells, write_in_cells
from .plot import Plot, Row
from .series import name_analyses
from .sources import as_series
from .style import new_axes, new_figure, nothing_to_show, number, short_names, styled


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
    image = ax.imshow(
        100 * shares, vmin=0, vmax=100 * largest, cmap="cividis", interpolation="nearest"
    )
    ax.set_aspect("auto")
    color_bar(image, ax, label="% of its stage's length")
    ax.set_yticks(range(len(names)), short_names(names, 18))
    name_analyses(ax, series, range(shares.shape[1]))
    ax.set_xlabel("epoch" if series.axis == "epoch" else "")
    frame_cells(ax)
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
        blocks = analysis.blocks
        distances = np.array([_centered_distance(block) for block in blocks])
        stages = [block.stage for block in blocks]
        lengths = {
            stage: sum(d for d, s in zip(distances, stages, strict=True) if s == stage)
            for stage in stages
        }
        total = np.array([lengths[stage] for stage in stages])
        columns.append(np.divide(distances, total, np.full(len(blocks), np.nan), where=total > 0))
    return np.array(columns).T


def _centered_distance(block: Block) -> float:
    """Return W2 between the centered layers; a shift adds its square to the square of W2."""
    shift = number(block.shift_share) * number(block.paired) ** 2
    return float(np.sqrt(max(number(block.distance) ** 2 - shift, 0.0)))


def block_distances_plot(series: SeriesRecord) -> Plot | None:
    """Return the figure; None unless all analyses have the same blocks, at least two of them."""
    if len(_blocks(series)) < 2:
        return None
    over = "over training" if series.axis == "epoch" else "across networks"

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 1.4 + 0.26 * len(_blocks(series)))
        block_distances(series, figure.subplots())
        return figure

    return Plot(
        "block-distances",
        f"Which blocks move the features, {over}?",
        "Percentage that each block (row) contributes to the length of its stage's path: the W2 "
        "distance over which it moves the centered features, divided by the sum over the blocks "
        "of the stage. On a geodesic with constant speed, all percentages of a stage are equal; "
        "one bright row means that a single block does most of the work.",
        f"Share of every block in its stage's length, {over}.",
        draw,
        lambda: list(_rows(series)),
    )


def _rows(series: SeriesRecord) -> Iterator[Row]:
    shares = _shares(series)
    for column, analysis in zip(shares.T, series.analyses, strict=True):
        for block, share in zip(analysis.blocks, column, strict=True):
            yield {
                "name": analysis.name,
                "epoch": analysis.provenance.epoch,
                "block": block.target,
                "stage": block.stage,
                "distance": block.distance,
                "share_of_length": defined(share),
            }
