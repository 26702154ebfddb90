"""Slow and obvious reference implementations, for tests of several packages."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from scipy.spatial.distance import cdist


def squared(x, y):
    """All squared distances, from differences in float64."""
    return cdist(np.asarray(x, float), np.asarray(y, float), "sqeuclidean")


def rational(x):
    """The numbers that floats are, exactly."""
    return [[Fraction(float(v)) for v in row] for row in np.asarray(x)]


def exact_costs(x, y):
    return [
        [sum((u - v) ** 2 for u, v in zip(p, q, strict=True)) for q in rational(y)]
        for p in rational(x)
    ]


def exact_w2(x, y):
    """W2^2 of two clouds of n equal points: the least mean over all n! pairings."""
    costs, n = exact_costs(x, y), len(x)
    pairings = itertools.permutations(range(n))
    return min(sum(costs[i][p[i]] for i in range(n)) for p in pairings) / n
