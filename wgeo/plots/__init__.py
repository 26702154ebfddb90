"""Figures of an analysis.

Most functions draw one panel: they take an `Analysis` (or its record) and return the axes. A
function that shows one step also takes the result of that step: `collapse` a `Collapse`,
`straightness` a `Straightness`, `distances` a `Straightness` or `TransportResult`, `class_means` a
`Trajectory`, `model_errors` a `Comparison`, `sample_sizes` a `BiasCurve`, `separation_law` a
`SeparationLaw`, `alignment` an `Alignment`. For other arguments, the error lists what is accepted.
`over`, `profiles` and `block_distances` compare the analyses of a `Series`, `model` draws a
solution of `wgeo.ufm`, and `flow` writes an animation of a `Trajectory`.

With ``ax=None``, the default, a panel is drawn in pyplot's current axes if they are empty, and
otherwise in a new figure. In a notebook, or if pyplot has been imported and opens windows, pyplot
manages the new figure and therefore shows it. A program that only writes files leaves no figure
in pyplot.

`figures` writes all figures at page width. For a paper's column or a slide, draw a panel in
`axes` of that size and `save` it::

    ax = plots.collapse(analysis, "nc1", ax=plots.axes("column"))
    plots.save(ax, "nc1.pdf")

``ax=`` may be any axes. All figures have one style, with colors that can be distinguished with
color blindness.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .block_transport import correlation_scores, distances, ot_scores
from .depth import collapse
from .depth_laws import alignment, separation_law
from .evidence import gradient_maps, sample_sizes
from .files import figures, save
from .length_shares import block_distances
from .models import model
from .pairs import correlation_pairs, distance_pairs
from .paths import class_means, interpolation_gap, straightness
from .prediction_errors import model_errors
from .series import over, profiles
from .single_classes import class_variability
from .style import axes

if TYPE_CHECKING:
    from .animation import flow as flow
else:  # flow solves transport problems, with torch; figures of a record load without it
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
