"""Neural collapse, layer by layer, of features in memory or of a stream of batches."""

from .depth import Collapse, Progress, SegmentLaw, SeparationLaw
from .entry import collapse, collapse_of, separation_law
from .metrics import LayerCollapse
from .streaming import CollapseStream, collapse_stream

__all__ = [
    "Collapse",
    "CollapseStream",
    "LayerCollapse",
    "Progress",
    "SegmentLaw",
    "SeparationLaw",
    "collapse",
    "collapse_of",
    "collapse_stream",
    "separation_law",
]
