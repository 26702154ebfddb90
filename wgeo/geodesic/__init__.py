"""Does a network move its samples along a Wasserstein geodesic?

`straightness` measures a trajectory, `straighter_than` tests it against another,
`bias_curve` shows what the number of samples does to the distances.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from .._deprecated import moved_names
from .bias import BiasCurve, bias_curve
from .gradient_maps import BrenierResult, brenier
from .judge import StraighterThan, straighter_than
from .measure import straightness
from .result import BlockTransport, SegmentStraightness, Straightness

__all__ = [
    "BiasCurve",
    "BlockTransport",
    "BrenierResult",
    "SegmentStraightness",
    "StraighterThan",
    "Straightness",
    "bias_curve",
    "brenier",
    "straighter_than",
    "straightness",
]


if not TYPE_CHECKING:  # or every name would count as defined

    def __getattr__(name: str) -> Any:
        if name != "verdict":
            return moved_names(__name__)(name)
        warnings.warn(
            "wgeo.geodesic.verdict is deprecated; wgeo.analysis.sentences(straightness) returns "
            "the sentences with their evidence.",
            DeprecationWarning,
            stacklevel=2,
        )
        analysis = importlib.import_module("wgeo.analysis")  # which stands above this package
        return lambda straight: " ".join(said.words for said in analysis.sentences(straight))
