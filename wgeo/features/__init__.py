"""Network and images in, features at every layer out: one forward pass for all blocks."""

from .network import blocks, inputs, normalization_for
from .pooling import pooling
from .projection import Projection
from .tracing import stream, trace

__all__ = [
    "Projection",
    "blocks",
    "inputs",
    "normalization_for",
    "pooling",
    "stream",
    "trace",
]
