"""Figures of an analysis: every function takes a record (or an `Analysis`) and returns Axes.

Give ``ax=`` to draw into a figure of your own; `figures` writes the whole set. One style
throughout: colours that the colour-blind can tell apart, vectors, no pyplot state.
"""

from typing import TYPE_CHECKING, Any

from .depth import METRICS, collapse
from .evidence import gradient_maps, sample_sizes
from .files import catalogue, figures
from .models import model
from .movement import distances, ot_scores
from .paths import RATIOS, SCORES, class_means, interpolation_gap, straightness
from .plot import Plot
from .several import over, profiles, series_rows

if TYPE_CHECKING:
    from .moving import flow as flow

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
    "flow",
    "gradient_maps",
    "interpolation_gap",
    "model",
    "ot_scores",
    "over",
    "profiles",
    "sample_sizes",
    "series_rows",
    "straightness",
]


def __getattr__(name: str) -> Any:
    # flow solves transport problems, with torch; figures of a record load without it.
    if name == "flow":
        from .moving import flow

        return flow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
