"""Figures of an analysis: every function takes a record (or an `Analysis`) and returns Axes.

`figures` writes the whole set, for a page. For a paper's column or a slide, draw a panel into
`axes` of that size, and `save` it::

    ax = plots.collapse(analysis, "nc1", ax=plots.axes("column"))
    plots.save(ax, "nc1.pdf")

``ax=`` may be any axes of your own. One style throughout: colours that the colour-blind can tell
apart, vectors, no pyplot state.
"""

from typing import TYPE_CHECKING, Any

from .block_transport import correlation_scores, distances, ot_scores
from .composed import catalogue
from .depth import METRICS, collapse
from .evidence import gradient_maps, sample_sizes
from .files import figures, save
from .models import model, model_layers, model_means, model_starts, model_terms
from .pairs import correlation_pairs
from .paths import RATIOS, SCORES, class_means, interpolation_gap, straightness
from .plot import Plot
from .prediction_errors import ERRORS, model_errors
from .series import over, profiles, series_rows
from .style import SIZES, axes

if TYPE_CHECKING:
    from .animation import flow as flow

__all__ = [
    "ERRORS",
    "METRICS",
    "RATIOS",
    "SCORES",
    "SIZES",
    "Plot",
    "axes",
    "catalogue",
    "class_means",
    "collapse",
    "correlation_pairs",
    "correlation_scores",
    "distances",
    "figures",
    "flow",
    "gradient_maps",
    "interpolation_gap",
    "model",
    "model_errors",
    "model_layers",
    "model_means",
    "model_starts",
    "model_terms",
    "ot_scores",
    "over",
    "profiles",
    "sample_sizes",
    "save",
    "series_rows",
    "straightness",
]


if not TYPE_CHECKING:  # or every name would be right

    def __getattr__(name: str) -> Any:
        # flow solves transport problems, with torch; figures of a record load without it.
        if name == "flow":
            from .animation import flow

            return flow
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
