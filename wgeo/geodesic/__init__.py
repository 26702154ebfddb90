"""Does a network move its samples along a Wasserstein geodesic?

`straightness` measures a trajectory, `straighter_than` tests it against another, and `bias_curve`
shows how distances depend on the number of samples.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from .._deprecated import moved_names
from .alignment_result import Alignment, BlockJacobian, PairAlignment, SegmentAlignment
from .bias import BiasCurve, bias_curve
from .gradient_maps import BrenierResult, brenier
from .measure import straightness
from .residual_alignment import alignment
from .result import BlockTransport, SegmentStraightness, Straightness
from .significance import StraighterThan, straighter_than

__all__ = [
    "Alignment",
    "BiasCurve",
    "BlockJacobian",
    "BlockTransport",
    "BrenierResult",
    "PairAlignment",
    "SegmentAlignment",
    "SegmentStraightness",
    "StraighterThan",
    "Straightness",
    "alignment",
    "bias_curve",
    "brenier",
    "straighter_than",
    "straightness",
]


if not TYPE_CHECKING:  # with this function, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name != "verdict":
            return moved_names(__name__, stacklevel=3)(name)
        warnings.warn(
            "wgeo.geodesic.verdict is deprecated; wgeo.analysis.sentences(straightness) returns "
            "the sentences with their evidence.",
            DeprecationWarning,
            stacklevel=2,
        )
        analysis = importlib.import_module("wgeo.analysis")  # a package above this one
        return lambda straight: " ".join(
            sentence.words for sentence in analysis.sentences(straight)
        )
