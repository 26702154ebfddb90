"""Constructed inputs with known answers, for tests of several packages."""

from __future__ import annotations

import numpy as np

CROSS = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
SQUARE = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
ROTATED = [  # points, degrees, and W2^2 between the points and the rotated points
    (CROSS, 30, 0.6698729811),
    (CROSS, 45, 1.4644660941),
    (CROSS, 90, 1.0),
    (CROSS, 180, 0.0),
    (SQUARE, 60, 0.5358983849),
    (SQUARE, 90, 0.0),
]


def rotated(points, degrees):
    """Points of the plane, as rows, rotated about the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(points, float) @ np.array([[c, s], [-s, c]])
