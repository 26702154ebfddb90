"""The whole analysis in order: the only package that knows it. The record is its result.

`analyze` takes a network and images, `analyze_trajectory` features; `Series` puts the analyses of
several checkpoints, or of several networks, side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .order import analyze, analyze_trajectory
from .result import Analysis
from .series import Series
from .verdict import THRESHOLDS, Sentence, sentences

__all__ = [
    "THRESHOLDS",
    "Analysis",
    "Sentence",
    "Series",
    "analyze",
    "analyze_trajectory",
    "sentences",
]

if not TYPE_CHECKING:  # or every name would count as defined
    __getattr__ = moved_names(__name__)
