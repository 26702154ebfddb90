"""Metrics over relative depth: one column per kind of network, one row per metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lab import by

from wgeo.plots.style import COLORS, new_figure, styled

Rows = Sequence[tuple[str, str, str]]  # metric, label, scale
ROWS: Rows = (
    ("nc1", "NC1", "log"),
    ("nc2_etf", "NC2 (ETF)", "linear"),
    ("ncc_error", "nearest-center error", "linear"),
    ("uncentred_angle", "mean angle (°)", "linear"),
)
AUTHORS_ROWS: Rows = (
    ("nc1", "NC1, without 1/K", "log"),
    ("nc2_equiangle", "angle measure", "linear"),
    ("nc2_equinorm", "spread of norms", "linear"),
)


@styled
def draw(views: Sequence[dict[str, Any]], path: Path, rows: Rows) -> None:
    """Draw single networks as thin lines, means over seeds with ReLU and CE as thick ones."""
    columns = by(views, "seen")
    datasets = [key[0] for key in by(views, "data")]
    figure = new_figure(2.1 * len(columns), 1.75 * len(rows))
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for (metric, label, scale), row in zip(rows, axes, strict=True):
        row[0].set_ylabel(label)
        for (seen,), ax in zip(columns, row, strict=True):
            ax.set_yscale(scale)
            ax.yaxis.set_major_formatter("{x:g}")
            for (data,), group in by(columns[(seen,)], "data").items():
                _lines(ax, group, metric, COLORS[datasets.index(data)])
    for (seen,), ax in zip(columns, axes[0], strict=True):
        ax.set_title(seen)
    for ax in axes[-1]:
        ax.set_xlabel("relative depth")
    for data, colour in zip(datasets, COLORS, strict=False):
        axes[0, 0].plot([], [], color=colour, label=data)
    axes[0, 0].legend()
    figure.savefig(path, dpi=130)


def _of(view: dict[str, Any], metric: str) -> list[float | None]:
    return view[metric] if metric in view else view["layers"][metric]


def _lines(ax: Any, group: Sequence[dict[str, Any]], metric: str, colour: str) -> None:
    usual = []
    for entry in group:
        values = np.array(_of(entry["view"], metric), float)  # None becomes NaN
        depth = np.linspace(0, 1, len(values))
        ax.plot(depth, values, color=colour, lw=0.5, alpha=0.35)
        if (entry["cell"]["activation"], entry["cell"]["loss"]) == ("relu", "ce"):
            usual.append(values)
    if usual:
        ax.plot(np.linspace(0, 1, len(usual[0])), np.mean(usual, 0), color=colour, lw=1.8)
