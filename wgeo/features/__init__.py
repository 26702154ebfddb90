"""Features of images at every layer of a network, in one forward pass."""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .network import blocks
from .projection import Projection
from .tracing import stream, trace

__all__ = ["Projection", "blocks", "stream", "trace"]

if not TYPE_CHECKING:  # otherwise type checkers would accept any name
    __getattr__ = moved_names(__name__)
