"""The network beside the models that theory offers: the geodesic, MUFM, the plain UFM."""

from .entry import compare
from .result import Comparison, ModelLayer

__all__ = [
    "Comparison",
    "ModelLayer",
    "compare",
]
