"""Matrices of colored cells: their frame, color bar and printed values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from .style import INK, inches_wide

_CELL = 0.27  # inches that a cell needs for its number


def frame_cells(ax: Axes) -> None:
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def color_bar(image: AxesImage, panels: Any, *, marks: bool = False, **options: Any) -> None:
    """Draw one color bar for the panels, without a frame, and with tick marks only if `marks`."""
    bar = image.figure.colorbar(image, ax=panels, fraction=0.05, **options)
    bar.outline.set_visible(False)
    if not marks:
        bar.ax.tick_params(length=0)


def write_in_cells(
    ax: Axes,
    values: np.ndarray,
    label: Callable[[int, int], str],
    *,
    white_up_to: float,
) -> None:
    """Print a label in every cell with a value, white in dark cells, if cells are wide enough."""
    if inches_wide(ax) / values.shape[1] < _CELL:
        return
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value <= white_up_to else INK
            ax.text(j, i, label(i, j), ha="center", va="center", fontsize=6, color=color)
