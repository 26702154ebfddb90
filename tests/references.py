"""Slow and obvious reference implementations, for tests of several packages."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def squared(x, y):
    """All squared distances, from differences in float64."""
    return cdist(np.asarray(x, float), np.asarray(y, float), "sqeuclidean")
