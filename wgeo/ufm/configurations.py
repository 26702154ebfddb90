"""Points of ReLU models with a lower objective than deep neural collapse.

Such points were found by Súkeník, Lampert, Mondelli (2024).

Let s be the ReLU, L the number of layers, m = L + 1 the number of factors (the features and the
weights of every layer), K the number of classes and n the number of samples per class. A
configuration is a choice of factors with A_m s(... s(A_2 A_1)) = I. With scaled factors the product
is x I. The lowest objective over all scales is

    V(C) = min_x (1 - x)^2 / 2 + (m/2) (n Lambda)^(1/m) C x^(2/m),   C = prod_i ||A_i||_F^(2/m),

where Lambda is the product of all decays. Orthogonal class means at every layer (deep neural
collapse) have C = K. Configurations whose inner layers have a rank below K can have a smaller C:
2.946 for three classes and four layers, 5.780 for six classes and four layers, and 9.234 for ten
classes and three layers. A point with such configurations as diagonal blocks, and orthogonal class
means for the remaining classes, has a lower objective than deep neural collapse. Such points exist
for all K >= 3 with L >= 4 and all K >= 10 with L >= 3.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import block_diag

from ..errors import ArgumentError
from .arguments import all_decays
from .certify import evaluate
from .problem import Problem
from .solution import UFMSolution
from .spectral import shrink

Factors = list[Float[np.ndarray, "_ _"]]


def configuration(classes: int, layers: int, spread: float = 1.1) -> Factors:
    """Return the factors A_1, ..., A_m of an explicit configuration, one column per class.

    These configurations are known:

    - 3 classes, L >= 4: the inner layers have rank two.
    - 10 classes, L >= 3: from the vertices, edges and triples of vertices of the complete graph on
      5 vertices.
    - v (v - 1) / 2 classes for v = 4, 6, 7, ..., L >= 4: from the vertices and edges of the
      complete graph on v vertices (the strongly regular graphs of Súkeník, Lampert, Mondelli 2024).

    Parameters
    ----------
    classes, layers : int
        One of the pairs above.
    spread : float
        The parameter b > 0 of the three-class family.

    Raises
    ------
    ArgumentError
        No configuration is known for these numbers, or the spread is not positive.
    """
    if not spread > 0:
        raise ArgumentError(f"spread must be > 0, not {spread!r}.")
    if classes == 10 and layers >= 3:
        return _ten_classes(layers)
    if layers >= 4 and classes == 3:
        return _three_classes(layers, spread)
    if layers >= 4 and classes in _edge_counts(classes):
        return _edge_classes(classes, layers)
    raise ArgumentError(
        f"No configuration is known for {classes} classes and {layers} layers; there is one for 3, "
        "6, 10, 15, 21, ... classes and at least 4 layers, and for 10 classes and 3 layers."
    )


def _edge_counts(limit: int) -> list[int]:
    """Return the numbers v (v - 1) / 2 of edges of complete graphs, v >= 4, up to `limit`."""
    return [v * (v - 1) // 2 for v in range(4, limit + 1) if v * (v - 1) // 2 <= limit]


def _three_classes(layers: int, b: float) -> Factors:
    """Use X = [[1, b, 0], [1, 0, b]], of rank two, up to the last hidden layer."""
    t = math.sqrt(0.5)
    X = np.array([[1, b, 0], [1, 0, b]])
    expansion = np.array([[1, -1], [-1, 1], [t, t]])
    readout = np.array([[-0.5, -0.5, 0.5 / t], [1 / b, 0, 0], [0, 1 / b, 0]])
    return [*_balanced_factors(X), *[np.eye(2)] * (layers - 3), expansion, readout]


def _ten_classes(layers: int) -> Factors:
    """Use the complete graph on 5 vertices.

    Its edges are the classes, and their incidence with its vertices is X. The units of the next
    layer are its triples of vertices.
    """
    X = _incidence(5)
    triples = list(itertools.combinations(range(5), 3))
    expansion = np.array([[1.0 if v in t else -1.0 for v in range(5)] for t in triples]) / 2
    readout = np.linalg.inv(np.maximum(expansion @ X, 0))
    return [*_balanced_factors(X), *[np.eye(5)] * (layers - 3), expansion, readout]


def _edge_classes(classes: int, layers: int) -> Factors:
    """Use a complete graph: its edges are the classes, and their incidence with vertices is X.

    Then relu((X^T - 1/2) X) = I.
    """
    X = _incidence(math.isqrt(2 * classes) + 1)
    return [*_balanced_factors(X), *[np.eye(len(X))] * (layers - 3), X.T - 0.5, np.eye(classes)]


def _incidence(vertices: int) -> Float[np.ndarray, "v K"]:
    """Return the vertex-edge incidence matrix of the complete graph."""
    edges = itertools.combinations(range(vertices), 2)
    return np.array([[float(v in edge) for v in range(vertices)] for edge in edges]).T


def _balanced_factors(X: Float[np.ndarray, "r K"]) -> Factors:
    """Return the H and W_1 with W_1 H = X whose penalty is smallest."""
    U, z, V = np.linalg.svd(X, full_matrices=False)
    return [np.sqrt(z)[:, None] * V, U * np.sqrt(z)]


def _norm_product(factors: Factors) -> float:
    """Return C = prod_i ||A_i||_F^(2/m) of a configuration; K for orthogonal class means."""
    return math.prod(float(np.linalg.norm(A)) ** (2 / len(factors)) for A in factors)


def configuration_value(C: float | int, per_class: int, decays: Sequence[float]) -> float:
    """Return V(C); decays[0] is for the features."""
    m = len(decays)
    return shrink(1.0, C * (per_class * math.prod(decays)) ** (1 / m), m)[1]


def lower_rank(
    labels: Any, *, dim: int, weight_decays: Sequence[float], feature_decay: float
) -> UFMSolution:
    """Return a point with a lower objective than deep neural collapse.

    The model has ReLUs and squared loss. The factors are block-diagonal: the blocks are known
    configurations, or contain a single class. The classes are divided among the blocks such that
    the objective is smallest. The ``settings`` of the solution contain ``dnc``, the objective of
    deep neural collapse. For every block they contain the number of classes (``blocks``) and
    C = prod_i ||A_i||_F^(2/m) of its m factors A_i, scaled to the product I (``constants``). If the
    decays are so large that zero is better than either point, both objectives are 1/2.

    Parameters
    ----------
    labels : array_like of int, (N,)
        Balanced classes: at least 3 with four or more layers, at least 10 with three.
    dim : int
        At least K.
    weight_decays : sequence of float, (L,)
        lambda_1, ..., lambda_L > 0; the last one is for the classifier.
    feature_decay : float
        lambda_H > 0.

    Raises
    ------
    ArgumentError
        There are too few classes or layers, classes are imbalanced, dim < K, or a decay is not a
        positive number.

    Examples
    --------
    >>> import numpy as np
    >>> from wgeo import ufm
    >>> labels = np.repeat(np.arange(10), 2)
    >>> solution = ufm.lower_rank(labels, dim=10, weight_decays=[1e-3] * 4, feature_decay=1e-3)
    >>> solution.objective < solution.settings["dnc"]
    True
    """
    start_time = time.perf_counter()
    decays = all_decays(feature_decay, weight_decays)
    problem = Problem.checked(labels, dim, decays, activation="relu")
    K, L = problem.num_classes, len(decays) - 1
    if not problem.balanced or dim < K:
        counts = "balanced" if problem.balanced else "imbalanced"
        raise ArgumentError(
            "lower_rank needs balanced classes and dim >= K, the number of classes; here the "
            f"classes are {counts}, dim = {dim} and K = {K}."
        )
    if (L < 4 and K < 10) or K < 3 or L < 3:
        raise ArgumentError(
            "No point with a lower objective than deep neural collapse is known for "
            f"{K} classes and {L} layers; there are points for K >= 3 with L >= 4 and for K >= 10 "
            "with L >= 3."
        )
    n = int(problem.counts[0])
    blocks = _best_blocks(problem, n)
    scaled = [_best_multiple(factors, problem, n)[0] for factors in blocks]
    H, *weights = _diagonal(scaled, [(dim, K), *[(dim, dim)] * (L - 1), (K, dim)])
    settings = {
        "method": "lower-rank",
        "blocks": [factors[0].shape[1] for factors in blocks],
        "constants": [_norm_product(factors) for factors in blocks],
        "dnc": configuration_value(K, n, decays),
    }
    solution = evaluate(problem, H=H[:, problem.labels], weights=weights, settings=settings)
    return replace(solution, seconds=time.perf_counter() - start_time)


def _best_blocks(problem: Problem, n: int) -> list[Factors]:
    """Return the configurations with K classes in total for which the objective is smallest."""
    K, L = problem.num_classes, problem.depth - 1
    sizes = (3, *_edge_counts(K)) if L >= 4 else (10,)
    blocks = {1: [np.eye(1)] * (L + 1)} | {k: configuration(k, L) for k in sizes if k <= K}
    costs = {k: _best_multiple(factors, problem, n)[1] for k, factors in blocks.items()}
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # for 0, 1, ..., K classes
    for total in range(1, K + 1):
        value, k = min((best[total - k][0] + cost, k) for k, cost in costs.items() if k <= total)
        best.append((value, [*best[total - k][1], k]))
    return [blocks[k] for k in best[K][1]]


def _best_multiple(factors: Factors, problem: Problem, n: int) -> tuple[Factors, float]:
    """Return a block, scaled to the best product x I, and its contribution to the objective.

    A block of k classes contributes (k/K) [(1 - x)^2 / 2 + (m/2) (K/k) C (n Lambda)^(1/m) x^(2/m)].
    """
    m, C = len(factors), _norm_product(factors)
    fraction = factors[0].shape[1] / problem.num_classes
    mean = n ** (1 / m) * problem.decay_mean  # every column of H stands for n samples
    x, value = shrink(1.0, C / fraction * mean, m)
    penalty = mean * C * x ** (2 / m)  # decay_i ||A_i||^2, the same for every i
    decays = [n * problem.decays[0], *problem.decays[1:]]
    scaled = [
        A / np.linalg.norm(A) * math.sqrt(penalty / decay)
        for A, decay in zip(factors, decays, strict=True)
    ]
    return scaled, fraction * value


def _diagonal(blocks: list[Factors], shapes: list[tuple[int, int]]) -> Factors:
    """Return block-diagonal factors, padded with zeros to these shapes."""
    padded = [np.zeros(shape) for shape in shapes]
    for A, parts in zip(padded, zip(*blocks, strict=True), strict=True):
        combined = block_diag(*parts)
        A[: combined.shape[0], : combined.shape[1]] = combined
    return padded
