"""Neural collapse, layer by layer, of features in memory or of a stream of batches."""

from .depth import Progress
from .entry import collapse
from .measure import collapse_of
from .metrics import LayerCollapse
from .result import Collapse
from .streaming import CollapseStream, collapse_stream

__all__ = [
    "Collapse",
    "CollapseStream",
    "LayerCollapse",
    "Progress",
    "collapse",
    "collapse_of",
    "collapse_stream",
]
