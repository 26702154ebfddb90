"""Features of the same samples at every layer of a network, in one object."""

from .parts import Block, Classifier, Layer, Segment
from .trajectory import Trajectory
from .trajectory import as_trajectory as as_trajectory

__all__ = ["Block", "Classifier", "Layer", "Segment", "Trajectory"]
