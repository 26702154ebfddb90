"""Does a network move its samples along a Wasserstein geodesic?

`straightness` measures a trajectory, `verdict` says it in words, `straighter_than` tests it against
a reference, `bias_curve` shows what the number of samples does to the distances.
"""

from __future__ import annotations

from .bias import BiasCurve, BiasPoint, bias_curve
from .judge import STATISTICS, StraighterThan, shuffled, straighter_than, verdict
from .measure import straightness
from .paths import LOW_RESOLUTION, PathFigures, path_figures, resolution
from .result import BlockTransport, SegmentStraightness, Straightness

__all__ = [
    "LOW_RESOLUTION",
    "STATISTICS",
    "BiasCurve",
    "BiasPoint",
    "BlockTransport",
    "PathFigures",
    "SegmentStraightness",
    "StraighterThan",
    "Straightness",
    "bias_curve",
    "path_figures",
    "resolution",
    "shuffled",
    "straighter_than",
    "straightness",
    "verdict",
]
