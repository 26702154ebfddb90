"""Panels of evidence for optimality: dependence on the sample size, and the Brenier test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .._deprecated import renamed_parameter
from ..storage.record import Record, Segment, SizePoint
from ..text import counted
from ..thresholds import LOW_RESOLUTION
from .paths import draw_curve, segment_handles, segment_style
from .plot import Plot, Row
from .sources import as_record
from .style import (
    COLORS,
    MEASURED,
    REFERENCE_LINE,
    interval_ends,
    layer_axis,
    legend_above,
    legend_below,
    legend_of_figure,
    log_if_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    require_choice,
    segment_name,
    styled,
)

CURVES: dict[str, str] = {
    "distance": "W2 end to end (feature units)",
    "ot_score": "OT score, end to end",
    "resolution": "Resolution",
}
"""Measures over the number of samples, and their labels."""

TESTS: dict[str, str] = {
    "asymmetry": "Asymmetry of the Jacobian",
    "min_eigenvalue": "Smallest eigenvalue of its symmetric part",
}
"""Measures of the Brenier test, and their labels."""


@renamed_parameter("figure", "measure")
@styled
def sample_sizes(record: Any, measure: str = "ot_score", ax: Axes | None = None) -> Axes:
    """Draw a measure of every segment over the number of samples.

    The measure compares the segment's first and last layer. If a curve still changes at its last
    point, the value depends on the number of samples. Bars show the standard deviation over random
    subsets. The marker of an OT score is hollow if the resolution is below 1/2 or undefined.

    Parameters
    ----------
    measure : str
        A key of `CURVES`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(64, 2))
    >>> ax = wgeo.plots.sample_sizes(wgeo.bias_curve(x, 2 * x), measure="distance")
    >>> ax.get_xlabel()
    'samples'
    """
    record = as_record(record, "BiasCurve")
    require_choice(measure, CURVES)
    ax = new_axes(ax)
    segments = record.segments
    if not any(_points(segment) for segment in segments):
        return nothing_to_show(ax, "This record has no curve over sample sizes.")
    sizes: set[float] = set()
    curves = []
    for i, segment in enumerate(segments):
        points = _points(segment)
        at = numbers([point.size for point in points])
        values = numbers([point.measure(measure) for point in points])
        spread = np.nan_to_num(numbers([point.measure(f"{measure}_deviation") for point in points]))
        solid = np.ones(len(at), bool)
        if measure == "ot_score":
            solid = numbers([point.measure("resolution") for point in points]) >= LOW_RESOLUTION
        draw_curve(ax, at, values, (values - spread, values + spread), solid, segment_style(i))
        sizes |= set(at)
        curves.append(values)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    ax.set_xlabel("samples")
    if measure == "resolution":
        ax.axhline(LOW_RESOLUTION, **REFERENCE_LINE)
        log_if_positive(ax, *curves, np.array([LOW_RESOLUTION]))
    ax.set_title(CURVES[measure])
    legend_below(ax, *segment_handles(record))
    return ax


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


def evidence_plots(record: Record) -> list[Plot]:
    segments, blocks = record.segments, record.blocks
    plots = []
    if any(_points(segment) for segment in segments):
        plots.append(_sample_sizes(record))
    if any(block.brenier for block in blocks):
        plots.append(_gradient_maps(record))
    return plots


def _points(segment: Segment) -> Sequence[SizePoint]:
    return segment.sample_sizes.points


def _sample_sizes(record: Record) -> Plot:
    segments = record.segments

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 3.0 + 0.16 * len(segments))
        for name, ax in zip(CURVES, figure.subplots(1, 3), strict=True):
            sample_sizes(record, name, ax)
            ax.tick_params(axis="x", labelrotation=90)
        legend_of_figure(figure, *segment_handles(record), max_columns=2)
        return figure

    def rows() -> list[Row]:
        return [
            {"segment": segment_name(segment.layers, i), **point.plain()}
            for i, segment in enumerate(segments)
            for point in _points(segment)
        ]

    largest = max((number(point.size) for s in segments for point in _points(s)), default=0)
    enough = [number(s.sample_sizes.enough) for s in segments]
    needed = max((n for n in enough if n > largest), default=None)
    note = f" A resolution of 1/2 would need about {needed:,.0f} samples." if needed else ""
    return Plot(
        "sample-sizes",
        "Dependence on the number of samples",
        "Transport from the first to the last layer of every segment, on random subsets of the "
        "samples; bars: standard deviation over subsets. Empirical W2 is biased: if a curve still "
        f"changes at the largest number of samples, the value depends on that number.{note}",
        "W2, OT score and resolution over the number of samples.",
        draw,
        rows,
    )


def _gradient_maps(record: Record) -> Plot:
    tested = [block for block in record.blocks if block.brenier]

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 5.0)
        for test, ax in zip(TESTS, figure.subplots(2, 1), strict=True):
            gradient_maps(record, test, ax)
        return figure

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

    points = tested[0].brenier.points
    return Plot(
        "gradient-maps",
        "Is each block the gradient of a convex function?",
        f"The Jacobian of each block, on unpooled features, at {points} images. Above: squared "
        "norm of its antisymmetric part divided by that of its symmetric part: 0 for a gradient, "
        "about 1 for a random matrix. Below: the smallest eigenvalue of the symmetric part; if it "
        "is negative, the block is not an optimal map, whatever its OT score.",
        f"Brenier test of {counted(len(tested), 'block')}.",
        draw,
        rows,
    )
