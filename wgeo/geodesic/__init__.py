"""Does a network move its samples along a Wasserstein geodesic?

`straightness` measures a trajectory, `verdict` says it in words, `straighter_than` tests it against
a reference, `bias_curve` shows what the number of samples does to the distances.
"""

from __future__ import annotations

from .bias import BiasCurve, BiasPoint, bias_curve
from .judge import STATISTICS, StraighterThan, shuffled, straighter_than, verdict
from .measure import straightness
from .nulls import POWER_MARGIN, null_scores, powerful
from .paths import LOW_RESOLUTION, PathFigures, path_figures, resolution
from .result import (
    BlockTransport,
    NullScore,
    Optimality,
    Pairs,
    SegmentStraightness,
    Straightness,
)

__all__ = [
    "LOW_RESOLUTION",
    "POWER_MARGIN",
    "STATISTICS",
    "BiasCurve",
    "BiasPoint",
    "BlockTransport",
    "NullScore",
    "Optimality",
    "Pairs",
    "PathFigures",
    "SegmentStraightness",
    "StraighterThan",
    "Straightness",
    "bias_curve",
    "null_scores",
    "path_figures",
    "powerful",
    "resolution",
    "shuffled",
    "straighter_than",
    "straightness",
    "verdict",
]
