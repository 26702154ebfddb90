"""Pairs of clouds that are hard for sparse exact solvers.

They are thin, have many equal distances or duplicates, or are copies of each other.
``make(kind, n, seed)`` returns the clouds x and y and their weights (None if uniform).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Clouds = tuple[np.ndarray, np.ndarray]
Weights = np.ndarray | None


def make(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Weights, Weights]:
    """Return two clouds of about n points of a kind, and their weights."""
    rng = np.random.default_rng(seed)
    x, y = KINDS[kind](rng, n)
    if kind.endswith("weights"):
        return x, y, rng.random(len(x)), rng.random(len(y))
    return x, y, None, None


def _twice(sample: Callable[[np.random.Generator, int], np.ndarray]):
    return lambda rng, n: (sample(rng, n), sample(rng, n))


def _circle(rng: np.random.Generator, n: int) -> np.ndarray:
    t = 2 * np.pi * rng.random(n)
    return np.stack([np.cos(t), np.sin(t)], 1)


def _spiral(rng: np.random.Generator, n: int) -> np.ndarray:
    t = 6 * np.pi * np.sqrt(rng.random(n))
    return np.stack([t * np.cos(t), t * np.sin(t)], 1)


def _curve(rng: np.random.Generator, n: int) -> np.ndarray:
    t = 2 * np.pi * rng.random((n, 1)) * np.arange(1, 4)
    return np.hstack([np.cos(t), np.sin(t)]) @ np.random.default_rng(5).standard_normal((6, 64))


def _segments(rng: np.random.Generator, n: int) -> Clouds:
    ends = rng.standard_normal((2, 8))
    return rng.random((n, 1)) * ends[0], rng.random((n, 1)) * ends[1] + 0.1


def _low_rank(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, 3)) @ np.random.default_rng(5).standard_normal((3, 256))


def _integers(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 5, (n, 16)).astype(float)


def _binary(width: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: (rng.random((n, width)) < 0.5).astype(float)


def _cube(rng: np.random.Generator, n: int) -> np.ndarray:
    width = int(np.ceil(np.log2(n)))
    corners = (np.arange(2**width)[:, None] >> np.arange(width)) & 1
    return rng.permutation(corners)[:n].astype(float)


def _near_ties(rng: np.random.Generator, n: int) -> np.ndarray:
    return _binary(16)(rng, n) + 1e-7 * rng.standard_normal((n, 16))


def _lattice(rng: np.random.Generator, n: int) -> Clouds:
    side = max(2, round(n ** (1 / 3)))
    points = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3).astype(float)
    return points, rng.permutation(points) * np.array([1, 2, 0.5])


def _equal_distances(rng: np.random.Generator, n: int) -> Clouds:
    x, y = np.zeros((2, n, 16))
    x[:, :8], y[:, 8:] = rng.standard_normal((2, n, 8))
    return tuple(z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))


def _orthoplex(rng: np.random.Generator, n: int) -> Clouds:
    vertices = np.concatenate([np.eye(100), -np.eye(100)])
    x, y = (vertices[rng.permutation(n) % 200] for _ in range(2))
    return x, 1.5 * y


def _copies(rng: np.random.Generator, n: int) -> Clouds:
    points = rng.standard_normal((20, 16))
    return points[rng.integers(20, size=n)], points[rng.integers(20, size=n)]


def _class_means(rng: np.random.Generator, n: int) -> Clouds:
    means, labels = 3 * rng.standard_normal((10, 64)), rng.integers(10, size=n)
    return means[labels] + rng.standard_normal((n, 64)), means[labels]


def _near_class_means(rng: np.random.Generator, n: int) -> Clouds:
    means, labels = rng.standard_normal((10, 64)), np.arange(n) % 10
    x, y = 1e-3 * rng.standard_normal((2, n, 64))
    return means[labels] + x, 3 * means[labels] + y


def _half_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, 16)) * (rng.random((n, 1)) < 0.5)


def _quantized(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.round(2 * rng.standard_normal((n, 3))) / 2


def _dead_relu(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.maximum(rng.standard_normal((n, 64)) - 2, 0)


def _sparse(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, 64)) * (rng.random((n, 64)) < 0.05)


def _copy(width: int, scale: float = 1.0, shift: float = 0.0, noise: float = 0.0):
    def clouds(rng: np.random.Generator, n: int) -> Clouds:
        x = rng.standard_normal((n, width))
        y = scale * x + shift + (noise * rng.standard_normal(x.shape) if noise else 0)
        return x, rng.permutation(y)

    return clouds


def _clusters(rng: np.random.Generator, n: int) -> Clouds:
    centers, shares = 20 * rng.standard_normal((10, 2)), rng.dirichlet(np.ones(10))
    x, y = 0.1 * rng.standard_normal((2, n, 2))
    return x + centers[rng.choice(10, size=n, p=shares)], y + centers[rng.integers(10, size=n)]


def _unequal(rng: np.random.Generator, n: int) -> Clouds:
    return _circle(rng, n), _circle(rng, n - 1)


def _outliers(rng: np.random.Generator, n: int) -> Clouds:
    x, y = rng.standard_normal((2, n, 16))
    x[:3] *= 1e4
    y[:3] *= 1e4
    return x, y


KINDS: dict[str, Callable[[np.random.Generator, int], Clouds]] = {
    "two samples of a circle": _twice(_circle),
    "a spiral": _twice(_spiral),
    "two segments": _segments,
    "a curve in 64 dimensions": _twice(_curve),
    "rank 3 in 256 dimensions": _twice(_low_rank),
    "integers": _twice(_integers),
    "binary vectors, d = 6": _twice(_binary(6)),
    "binary vectors, d = 64": _twice(_binary(64)),
    "corners of a cube": _twice(_cube),
    "binary vectors and 1e-7": _twice(_near_ties),
    "a lattice": _lattice,
    "equal distances": _equal_distances,
    "vertices of orthoplexes": _orthoplex,
    "20 points in many copies": _copies,
    "collapse to class means": _class_means,
    "near class means": _near_class_means,
    "half zeros": _twice(_half_zero),
    "quantized": _twice(_quantized),
    "dead ReLUs": _twice(_dead_relu),
    "sparse": _twice(_sparse),
    "permuted copy, d = 2": _copy(2),
    "permuted copy, d = 16": _copy(16),
    "permuted copy, d = 512": _copy(512),
    "permuted and 1e-9": _copy(16, noise=1e-9),
    "shuffled near copy": _copy(16, noise=0.01),
    "shifted and scaled copy": _copy(16, scale=2, shift=7),
    "clusters of other sizes": _clusters,
    "outliers": _outliers,
    "unequal sizes, circle": _unequal,
    "circle, weights": _twice(_circle),
    "copies, weights": _copies,
    "Gaussian, d = 2": _copy(2, scale=0.0, noise=1.0),
    "Gaussian, d = 16": _copy(16, scale=0.0, noise=1.0),
    "Gaussian, d = 512": _copy(512, scale=0.0, noise=1.0),
}
