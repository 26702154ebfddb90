"""The whole analysis in order: the only package that knows it. The record is its result.

`analyze` takes a network and images, `analyze_trajectory` features; `Series` puts the analyses of
several checkpoints, or of several networks, side by side.
"""

from __future__ import annotations

from .order import analyze, analyze_trajectory
from .result import Analysis, versions
from .series import Series
from .verdict import THRESHOLDS, Sentence, sentences
from .views import class_view, training_view

__all__ = [
    "THRESHOLDS",
    "Analysis",
    "Sentence",
    "Series",
    "analyze",
    "analyze_trajectory",
    "class_view",
    "sentences",
    "training_view",
    "versions",
]
