"""Analyze a network on images, and combine all measurements in a record.

`analyze` takes a network and images; `analyze_trajectory` takes features. `Series` compares the
analyses of several checkpoints or networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .pipeline import analyze as analyze
    from .pipeline import analyze_trajectory as analyze_trajectory
    from .result import Analysis as Analysis
    from .series import Series as Series
    from .verdict import THRESHOLDS as THRESHOLDS
    from .verdict import Sentence as Sentence
    from .verdict import sentences as sentences
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Analysis": "result",
            "Sentence": "verdict",
            "Series": "series",
            "THRESHOLDS": "verdict",
            "analyze": "pipeline",
            "analyze_trajectory": "pipeline",
            "sentences": "verdict",
        },
    )

__all__ = [
    "THRESHOLDS",
    "Analysis",
    "Sentence",
    "Series",
    "analyze",
    "analyze_trajectory",
    "sentences",
]
