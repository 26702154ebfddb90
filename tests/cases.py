"""Constructed inputs with known answers, for tests of several packages."""

from __future__ import annotations

import numpy as np

from wgeo import Trajectory

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


def cloud(seed, n=5, d=3, offset=0.0, spread=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (offset + spread * rng.standard_normal((n, d))).astype(dtype)


ADVERSARIAL = {
    "plain": {},
    "far float32": {"offset": 1e4, "spread": 1e-2, "dtype": np.float32},
    "farther float32": {"offset": 1e7, "spread": 4.0, "dtype": np.float32},
    "all alike float32": {"offset": 1e8, "spread": 1e-3, "dtype": np.float32},
    "far float64": {"offset": 1e8, "spread": 1e-6},
    "half precision": {"offset": 500.0, "spread": 1.0, "dtype": np.float16},
    "tiny": {"spread": 1e-30},
    "tiny float32": {"spread": 1e-30, "dtype": np.float32},
    "huge": {"spread": 1e30},
    "huge float32": {"spread": 1e30, "dtype": np.float32},
    "line": {"d": 1, "offset": 1e6, "spread": 1e-3},
}


def save_stores(home, names):
    """Save stores of features, of 16 samples each, under these names in a folder."""
    rng = np.random.default_rng(0)
    for name in names:
        first = rng.normal(size=(16, 3))
        arrays = [first, 0.5 * first + rng.normal(size=3)]
        Trajectory.from_arrays(arrays, np.arange(16) % 2).save(home / name)
    return home
