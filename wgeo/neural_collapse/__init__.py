"""Neural collapse, layer by layer: of features in memory, or of a stream of batches."""

from .depth import FALLING, Progress
from .entry import collapse
from .measure import collapse_of
from .metrics import Frame, LayerCollapse
from .result import Collapse
from .streaming import CollapseStream, collapse_stream

__all__ = [
    "FALLING",
    "Collapse",
    "CollapseStream",
    "Frame",
    "LayerCollapse",
    "Progress",
    "collapse",
    "collapse_of",
    "collapse_stream",
]
