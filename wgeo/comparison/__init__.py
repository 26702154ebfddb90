"""Comparison of a network with theoretical models: the geodesic, MUFM, the plain UFM."""

from .entry import compare
from .result import Comparison, ModelLayer

__all__ = [
    "Comparison",
    "ModelLayer",
    "compare",
]
