"""Figures of an analysis.

Most functions draw one panel: they take an `Analysis`, or its record, and return the axes. Many
also take the result of a single step, such as a `Straightness` or a `Trajectory`. An argument that
cannot be drawn, or an unknown segment or measure, raises `ArgumentError`, which lists the choices.
`over`, `profiles` and `block_distances` compare the analyses of a `Series`. `model` draws a
solution of `wgeo.ufm`, and `flow` writes an animation of a `Trajectory`.

By default, a panel is drawn in pyplot's current axes if they are empty, and otherwise in a new
figure. pyplot shows the new figure in a notebook, and in a program that has imported pyplot with a
backend that opens windows. In other programs, the new figure is not registered in pyplot. In your
own figure of several axes, each panel has its own legend and color bar.

`figures` writes all figures at page width. For a paper's column or a slide, draw a panel in `axes`
of that size and `save` it::

    ax = plots.collapse(analysis, "nc1", ax=plots.axes("column"))
    plots.save(ax, "nc1.pdf")

All figures have the same style. Its colors can be told apart with color blindness.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .block_transport import (
    block_distances,
    correlation_scores,
    distances,
    gradient_maps,
    ot_scores,
)
from .classes import class_means, class_variability
from .depth import collapse, separation_law
from .files import figures, save
from .matrices import alignment, correlation_pairs, distance_pairs
from .models import model
from .paths import interpolation_gap, sample_sizes, straightness
from .predictions import model_errors
from .series import over, profiles
from .style import axes

if TYPE_CHECKING:
    from .animation import flow as flow
else:  # flow imports torch; all other figures load without it
    __getattr__ = lazy_names(__name__, {"flow": "animation"})

__all__ = [
    "alignment",
    "axes",
    "block_distances",
    "class_means",
    "class_variability",
    "collapse",
    "correlation_pairs",
    "correlation_scores",
    "distance_pairs",
    "distances",
    "figures",
    "flow",
    "gradient_maps",
    "interpolation_gap",
    "model",
    "model_errors",
    "ot_scores",
    "over",
    "profiles",
    "sample_sizes",
    "save",
    "separation_law",
    "straightness",
]
