"""Neural collapse, layer by layer, of features in memory or of a stream of batches."""

from .depth import Progress
from .entry import collapse, separation_law
from .measure import collapse_of
from .metrics import LayerCollapse
from .result import Collapse
from .separation import SegmentLaw, SeparationLaw
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
