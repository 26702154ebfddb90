"""The whole analysis, from a network and images to a record.

`analyze` takes a network and images, `analyze_trajectory` takes features; `Series` compares the
analyses of several checkpoints, or of several networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .pipeline import analyze, analyze_trajectory
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
