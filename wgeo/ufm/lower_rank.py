"""Points of ReLU models that lie below deep neural collapse (Súkeník, Lampert, Mondelli 2024).

A configuration is a choice of factors that fits exactly, A_m s(... s(A_2 A_1)) = I. Scaled along
its ray to A_i = t_i A_i it reaches

    V(C) = min_x (1 - x)^2 / 2 + (m/2) (n Lambda)^(1/m) C x^(2/m),   C = prod_i ||A_i||_F^(2/m),

Lambda the product of all decays; orthogonal frames (deep neural collapse) have C = K. Inner layers
of a rank below K can have less: C = 2.946 for three classes and four layers, 9.234 for ten classes
and three layers. Put beside each other as diagonal blocks, with frames for the classes left over,
they beat deep neural collapse for every K >= 3 with L >= 4 and every K >= 10 with L >= 3.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ArgumentError
from .certify import place
from .problem import Problem
from .solution import UFMSolution
from .spectral import shrink

Factors = list[Float[np.ndarray, "_ _"]]


def configuration(classes: int, layers: int, spread: float = 1.1) -> Factors:
    """Return the factors A_1, ..., A_m of an explicit configuration, one column a class.

    Parameters
    ----------
    classes, layers : int
        (3, L >= 4): inner layers of rank two. (10, L >= 3): vertices, edges and triples of the
        complete graph on five vertices.
    spread : float
        The parameter b > 0 of the three-class family.
    """
    if classes == 3 and layers >= 4:
        return _three(layers, spread)
    if classes == 10 and layers >= 3:
        return _ten(layers)
    raise ArgumentError(
        f"No configuration is known for {classes} classes and {layers} layers; there is one for 3 "
        "classes and at least 4 layers, and for 10 classes and at least 3."
    )


def _three(layers: int, b: float) -> Factors:
    """X = [[1, b, 0], [1, 0, b]] stays two-dimensional until the last hidden layer opens it."""
    s, t = 1.0, math.sqrt(0.5)
    X = np.array([[1, b, 0], [1, 0, b]])
    opening = np.array([[s, -s], [-s, s], [t, t]])
    reading = np.array([[-0.5 / s, -0.5 / s, 0.5 / t], [1 / (s * b), 0, 0], [0, 1 / (s * b), 0]])
    return [*_halves(X), *[np.eye(2)] * (layers - 3), opening, reading]


def _ten(layers: int) -> Factors:
    """Classes are the edges of K_5: X has their vertices, the next layer the triples they span."""
    edges = list(itertools.combinations(range(5), 2))
    triples = list(itertools.combinations(range(5), 3))
    X = np.array([[float(v in e) for e in edges] for v in range(5)])
    opening = np.array([[1.0 if v in t else -1.0 for v in range(5)] for t in triples]) / 2
    reading = np.linalg.inv(np.maximum(opening @ X, 0))
    return [*_halves(X), *[np.eye(5)] * (layers - 3), opening, reading]


def _halves(X: Float[np.ndarray, "r K"]) -> Factors:
    """H and W_1 of least penalty with W_1 H = X: each takes the root of the singular values."""
    U, z, V = np.linalg.svd(X, full_matrices=False)
    return [np.sqrt(z)[:, None] * V, U * np.sqrt(z)]


def constant(factors: Factors) -> float:
    """C = prod_i ||A_i||_F^(2/m) of a configuration; frames of K classes have K."""
    return math.prod(float(np.linalg.norm(A)) ** (2 / len(factors)) for A in factors)


def configuration_value(C: float | int, per_class: int, decays: Sequence[float]) -> float:
    """V(C), the least value on the ray of a configuration; `decays` with the features' first."""
    m = len(decays)
    return shrink(1.0, C * (per_class * math.prod(decays)) ** (1 / m), m)[1]


def lower_rank(
    labels: Any, *, dim: int, weight_decays: Sequence[float], feature_decay: float
) -> UFMSolution:
    """Return a point below deep neural collapse: blocks of configurations, frames for the rest.

    Its ``settings`` hold both values: ``dnc``, that of deep neural collapse, and ``constants``, C
    of every block.

    Parameters
    ----------
    labels : array_like of int, (N,)
        Balanced classes: at least 3 with four or more layers, at least 10 with three.
    dim : int
        At least K.
    weight_decays : sequence of float, (L,)
    feature_decay : float

    Raises
    ------
    ArgumentError
        No configuration for so few classes or layers, imbalanced classes, or dim < K.
    """
    began = time.perf_counter()
    decays = (feature_decay, *weight_decays)
    problem = Problem.checked(labels, dim, decays, activation="relu")
    K, L = problem.num_classes, len(weight_decays)
    if not problem.balanced or dim < K:
        raise ArgumentError("The configurations are for balanced classes and dim >= K.")
    size = 3 if L >= 4 else 10
    if size > K or L < 3:
        raise ArgumentError(
            f"No point below deep neural collapse is known for {K} classes and {L} layers; there "
            "are some for K >= 3 with L >= 4 and for K >= 10 with L >= 3."
        )
    block = configuration(size, L)
    blocks = [block] * (K // size) + [[np.eye(1)] * (L + 1)] * (K % size)
    n = int(problem.counts[0])
    scaled = [_scale(factors, problem, n) for factors in blocks]
    H, *weights = _diagonal(scaled, [(dim, K), *[(dim, dim)] * (L - 1), (K, dim)])
    constants = [constant(factors) for factors in blocks]
    settings = {
        "method": "explicit",
        "constants": constants,
        "dnc": configuration_value(K, n, decays),
    }
    return place(problem, H=H[:, problem.labels], weights=weights, settings=settings, began=began)


def _scale(factors: Factors, problem: Problem, n: int) -> Factors:
    """The best point on a block's ray: its product is x I, its factors share the penalty evenly.

    A block of k classes has (k/K) [(1 - x)^2 / 2 + (m/2) (K/k) C (n Lambda)^(1/m) x^(2/m)].
    """
    m, k, C = len(factors), factors[0].shape[1], constant(factors)
    decays = [n * problem.decays[0], *problem.decays[1:]]  # every column of H stands for n
    mean = math.prod(decays) ** (1 / m)
    x = shrink(1.0, problem.num_classes / k * C * mean, m)[0]
    penalty = mean * C * x ** (2 / m)  # decay_i ||A_i||^2, the same for every i
    return [
        A / np.linalg.norm(A) * math.sqrt(penalty / decay)
        for A, decay in zip(factors, decays, strict=True)
    ]


def _diagonal(blocks: list[Factors], shapes: list[tuple[int, int]]) -> Factors:
    """The factors of all blocks on the diagonals of matrices of these shapes."""
    whole = [np.zeros(shape) for shape in shapes]
    for i, A in enumerate(whole):
        row = column = 0
        for factors in blocks:
            r, c = factors[i].shape
            A[row : row + r, column : column + c] = factors[i]
            row, column = row + r, column + c
    return whole
