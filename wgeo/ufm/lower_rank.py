"""Points of ReLU models that lie below deep neural collapse (Súkeník, Lampert, Mondelli 2024).

A configuration is a choice of factors that fits exactly, A_m s(... s(A_2 A_1)) = I. Scaled along
its ray to A_i = t_i A_i it reaches

    V(C) = min_x (1 - x)^2 / 2 + (m/2) (n Lambda)^(1/m) C x^(2/m),   C = prod_i ||A_i||_F^(2/m),

Lambda the product of all decays; orthogonal frames (deep neural collapse) have C = K. Inner layers
of a rank below K can have less: C = 2.946 for three classes and four layers, 5.780 for six and
four, 9.234 for ten classes and three layers. Put beside each other as diagonal blocks, with frames
for the classes left over, they beat deep neural collapse for every K >= 3 with L >= 4 and every
K >= 10 with L >= 3.
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
from .problem import Problem, all_decays
from .solution import UFMSolution
from .spectral import shrink

Factors = list[Float[np.ndarray, "_ _"]]


def configuration(classes: int, layers: int, spread: float = 1.1) -> Factors:
    """Return the factors A_1, ..., A_m of an explicit configuration, one column a class.

    Parameters
    ----------
    classes, layers : int
        (3, L >= 4): inner layers of rank two. (10, L >= 3): vertices, edges and triples of the
        complete graph on five vertices. (s (s - 1) / 2, L >= 4) with s >= 4, 10 excepted: vertices
        and edges of the complete graph on s vertices, the strongly regular graphs of Súkeník,
        Lampert, Mondelli (2024).
    spread : float
        The parameter b > 0 of the three-class family.

    Raises
    ------
    ArgumentError
        Another number of classes or layers, or a spread that is not positive.
    """
    if not spread > 0:
        raise ArgumentError(f"spread must be > 0, not {spread!r}.")
    if classes == 10 and layers >= 3:
        return _ten(layers)
    if layers >= 4 and classes == 3:
        return _three(layers, spread)
    if layers >= 4 and classes in _edge_counts(classes):
        return _edges(classes, layers)
    raise ArgumentError(
        f"No configuration is known for {classes} classes and {layers} layers; there is one for 3, "
        "6, 10, 15, 21, ... classes and at least 4 layers, and for 10 classes and 3 layers."
    )


def _edge_counts(most: int) -> list[int]:
    """s (s - 1) / 2 up to `most`: the edges of complete graphs on s >= 4 vertices."""
    return [s * (s - 1) // 2 for s in range(4, most + 1) if s * (s - 1) // 2 <= most]


def _three(layers: int, b: float) -> Factors:
    """X = [[1, b, 0], [1, 0, b]] stays two-dimensional until the last hidden layer opens it."""
    s, t = 1.0, math.sqrt(0.5)
    X = np.array([[1, b, 0], [1, 0, b]])
    opening = np.array([[s, -s], [-s, s], [t, t]])
    reading = np.array([[-0.5 / s, -0.5 / s, 0.5 / t], [1 / (s * b), 0, 0], [0, 1 / (s * b), 0]])
    return [*_halves(X), *[np.eye(2)] * (layers - 3), opening, reading]


def _ten(layers: int) -> Factors:
    """Classes are the edges of K_5: X has their vertices, the next layer the triples they span."""
    X = _incidence(5)
    triples = list(itertools.combinations(range(5), 3))
    opening = np.array([[1.0 if v in t else -1.0 for v in range(5)] for t in triples]) / 2
    reading = np.linalg.inv(np.maximum(opening @ X, 0))
    return [*_halves(X), *[np.eye(5)] * (layers - 3), opening, reading]


def _edges(classes: int, layers: int) -> Factors:
    """Classes are the edges of K_s: X has their vertices, and relu((X^T - 1/2) X) = I."""
    X = _incidence(math.isqrt(2 * classes) + 1)
    return [*_halves(X), *[np.eye(len(X))] * (layers - 3), X.T - 0.5, np.eye(classes)]


def _incidence(s: int) -> Float[np.ndarray, "s K"]:
    """Which of s vertices lie on which edge of the complete graph."""
    edges = itertools.combinations(range(s), 2)
    return np.array([[float(v in edge) for v in range(s)] for edge in edges]).T


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

    Of all ways to divide the classes among the configurations known, the lowest. Its ``settings``
    hold ``dnc``, the value of deep neural collapse, and ``blocks`` and ``constants``, the classes
    and the C of every block.

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
    decays = all_decays(feature_decay, weight_decays)
    problem = Problem.checked(labels, dim, decays, activation="relu")
    K, L = problem.num_classes, len(decays) - 1
    if not problem.balanced or dim < K:
        raise ArgumentError("The configurations are for balanced classes and dim >= K.")
    if (L < 4 and K < 10) or K < 3 or L < 3:
        raise ArgumentError(
            f"No point below deep neural collapse is known for {K} classes and {L} layers; there "
            "are some for K >= 3 with L >= 4 and for K >= 10 with L >= 3."
        )
    n = int(problem.counts[0])
    blocks = _division(problem, n)
    scaled = [_scale(factors, problem, n) for factors in blocks]
    H, *weights = _diagonal(scaled, [(dim, K), *[(dim, dim)] * (L - 1), (K, dim)])
    settings = {
        "method": "lower-rank",
        "blocks": [factors[0].shape[1] for factors in blocks],
        "constants": [constant(factors) for factors in blocks],
        "dnc": configuration_value(K, n, decays),
    }
    return place(problem, H=H[:, problem.labels], weights=weights, settings=settings, began=began)


def _division(problem: Problem, n: int) -> list[Factors]:
    """The configurations whose sizes add up to K and whose values add up to the least."""
    K, L = problem.num_classes, problem.depth - 1
    known: list[Factors] = [[np.eye(1)] * (L + 1)]
    if L >= 4:
        known += [configuration(size, L) for size in (3, *_edge_counts(K)) if size <= K]
    else:
        known.append(configuration(10, L))
    costs = [_on_ray(factors, problem, n)[1] for factors in known]
    best: list[tuple[float, list[Factors]]] = [(0.0, [])]
    for total in range(1, K + 1):
        fitting = [
            (best[total - factors[0].shape[1]][0] + cost, i)
            for i, (factors, cost) in enumerate(zip(known, costs, strict=True))
            if factors[0].shape[1] <= total
        ]
        value, i = min(fitting)
        best.append((value, [*best[total - known[i][0].shape[1]][1], known[i]]))
    return best[K][1]


def _on_ray(factors: Factors, problem: Problem, n: int) -> tuple[float, float]:
    """The best x on a block's ray, where its product is x I, and its part of the objective.

    A block of k classes has (k/K) [(1 - x)^2 / 2 + (m/2) (K/k) C (n Lambda)^(1/m) x^(2/m)].
    """
    m, share = len(factors), factors[0].shape[1] / problem.num_classes
    mean = n ** (1 / m) * problem.decay_mean  # every column of H stands for n
    x, value = shrink(1.0, constant(factors) / share * mean, m)
    return x, share * value


def _scale(factors: Factors, problem: Problem, n: int) -> Factors:
    """The best point on a block's ray, whose factors share the penalty evenly."""
    m, C = len(factors), constant(factors)
    decays = [n * problem.decays[0], *problem.decays[1:]]
    mean = n ** (1 / m) * problem.decay_mean
    x = _on_ray(factors, problem, n)[0]
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
