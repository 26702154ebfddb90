"""Figures of an analysis: every function takes a record (or an `Analysis`) and returns Axes.

Give ``ax=`` to draw into a figure of your own; `figures` writes the whole set. One style
throughout: colours that the colour-blind can tell apart, vectors, no pyplot state.
"""

from .depth import METRICS, collapse
from .files import Plot, catalogue, figures
from .movement import distances, ot_scores
from .paths import RATIOS, SCORES, class_means, interpolation_gap, straightness

__all__ = [
    "METRICS",
    "RATIOS",
    "SCORES",
    "Plot",
    "catalogue",
    "class_means",
    "collapse",
    "distances",
    "figures",
    "interpolation_gap",
    "ot_scores",
    "straightness",
]
