"""Does a network move its samples along a Wasserstein geodesic?

`straightness` measures a trajectory, `straighter_than` tests it against another,
`bias_curve` shows what the number of samples does to the distances.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from .bias import BiasCurve, BiasPoint, bias_curve
from .gradient_maps import BrenierBlocks, BrenierResult, brenier, brenier_blocks
from .judge import STATISTICS, StraighterThan, shuffled, straighter_than
from .measure import straightness
from .nulls import POWER_MARGIN, null_scores, powerful
from .paths import LOW_RESOLUTION, PathFigures, path_figures, resolution
from .result import BlockTransport, NullScore, Optimality, Pairs, SegmentStraightness, Straightness

__all__ = [
    "LOW_RESOLUTION",
    "POWER_MARGIN",
    "STATISTICS",
    "BiasCurve",
    "BiasPoint",
    "BlockTransport",
    "BrenierBlocks",
    "BrenierResult",
    "NullScore",
    "Optimality",
    "Pairs",
    "PathFigures",
    "SegmentStraightness",
    "StraighterThan",
    "Straightness",
    "bias_curve",
    "brenier",
    "brenier_blocks",
    "null_scores",
    "path_figures",
    "powerful",
    "resolution",
    "shuffled",
    "straighter_than",
    "straightness",
]


def __getattr__(name: str) -> Any:
    if name != "verdict":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "wgeo.geodesic.verdict is deprecated; wgeo.analysis.sentences(straightness) returns the "
        "sentences with their evidence.",
        DeprecationWarning,
        stacklevel=2,
    )
    analysis = importlib.import_module("wgeo.analysis")  # which stands above this package
    return lambda straight: " ".join(said.words for said in analysis.sentences(straight))
